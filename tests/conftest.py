"""Shared by all tests: the reference data, a compilation cache, and a run without training."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
CHECKOUT = Path(__file__).resolve().parents[1]
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CHECKOUT / '.cache' / 'xla'))
# Even the smallest program: each worker and each command needs hundreds of the same ones.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Many programs on small arrays: optimising them would take longer than it saves.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true',
)

import pytest  # noqa: E402


def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores: some tests wait for a command that they started, or for a file."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def pytest_collection_modifyitems(items: list) -> None:
    """First the file that trains a run, and last the others that use the run and would wait."""

    def place(item) -> int:
        if item.path.parent.name != 'commands':
            return 1
        return 0 if item.path.name == 'test_commands.py' else 2

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now stays: searching it for garbage took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _existing(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f'{path.name} is not beside this checkout')
    return path


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Real scans and reference numbers beside the checkout; without them tests are skipped."""
    return _existing(CHECKOUT.parent / 'shared')


@pytest.fixture(scope='session')
def golden_dir() -> Path:
    """Numbers computed by the published code (`$FLUIDJAX_GOLDEN` names another set)."""
    return _existing(Path(os.environ.get('FLUIDJAX_GOLDEN', CHECKOUT.parent / 'shared' / 'golden')))


@pytest.fixture(scope='session')
def checkout() -> Path:
    """The top of the checkout."""
    return CHECKOUT


@pytest.fixture(scope='session')
def everyones(tmp_path_factory, worker_id) -> Path:
    """A folder shared by all of pytest's workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == 'master' else own.parent) / 'everyones'
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='session')
def store(everyones) -> Path:
    """Where embedded cohorts are built, each once for all workers."""
    return everyones / 'store'


@pytest.fixture(scope='session')
def smoke_run(everyones) -> Path:
    """A run of the smoke size with initial parameters, thresholds and scores, made in seconds.

    Its files are those of `train` and `eval`. Tests must not write into it. The first worker makes
    it.
    """
    from fluidjax.base import files

    folder = everyones / 'runs' / 'smoke'
    with files.locked_in_turn(everyones / 'runs.lock'):
        if not (folder / 'eval' / 'metrics.json').is_file():
            _make_smoke_run(folder)
    return folder


def _make_smoke_run(folder: Path) -> None:
    import json

    import jax

    from configs import ldm
    from fluidjax.base.settings import save_config
    from fluidjax.runs import thresholds
    from fluidjax.runs.cohort import model_grid
    from fluidjax.runs.detector import Choice, configured
    from fluidjax.runs.load import Run
    from fluidjax.runs.stages import build_stages
    from fluidjax.training import checkpoint
    from fluidjax.training.settings import make_optimizer
    from fluidjax.training.state import create_state, run_once

    config = ldm.get_config('smoke')
    grid = model_grid(config)
    stage = build_stages(config, grid)[-1]
    method, settings = stage.method, stage.training
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    params = run_once(method.init, jax.random.key(0))
    state = create_state(params, method.trainable, optimizer)
    checkpoint.save(
        folder / 'checkpoints' / method.stage,
        settings.steps,
        jax.device_get(state.replace(step=state.step + settings.steps)),
    )
    save_config(folder / 'config.json', config)
    (folder / 'cohort.json').write_text(
        json.dumps(
            {
                'cohort': 'template_cohort/smoke/1.2.0',
                'sizes': {'train': 8, 'validation': 2, 'test': 4},
            }
        )
    )
    rules = dict.fromkeys(thresholds.RULES, 0.1)
    run = Run(config, grid, method, {}, settings.steps, folder)
    thresholds.save(
        folder, run, {'conddiff': rules}, {'conddiff': Choice(configured(run.config, run.method))}
    )
    (folder / 'eval').mkdir()
    entry = {'mean': 0.25, 'ci_low': 0.1, 'ci_high': 0.4, 'n': 4}
    (folder / 'eval' / 'metrics.json').write_text(
        json.dumps({'template_smoke': {'conddiff': {'ap': entry}}})
    )
