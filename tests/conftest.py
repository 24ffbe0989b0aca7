"""Shared by all tests: the reference data, a compilation cache, and a run without training."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
CHECKOUT = Path(__file__).resolve().parents[1]
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CHECKOUT / '.cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# Many programs on small arrays: optimising them would take longer than it saves.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true',
)

import pytest  # noqa: E402


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: some tests wait for a command that they started."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def pytest_collection_modifyitems(items: list) -> None:
    """First the file that trains a run, and last the others that use the run and would wait."""

    def place(item) -> int:
        if item.path.parent.name != 'commands':
            return 1
        return 0 if item.path.name == 'test_commands.py' else 2

    items.sort(key=place)


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
def smoke_run(tmp_path_factory) -> Path:
    """A run of the smoke size with initial parameters, thresholds and scores, made in seconds.

    Its files are those of `train` and `eval`. Tests must not write into it.
    """
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

    folder = tmp_path_factory.mktemp('runs') / 'smoke'
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
    return folder
