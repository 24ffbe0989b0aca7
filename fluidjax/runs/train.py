"""Training all stages of a configuration, one after another, in the run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base import cli, environment, files
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.settings import differences, load_config, save_config
from fluidjax.fluid.grid import Grid
from fluidjax.methods.latent_diffusion import LatentDiffusion
from fluidjax.methods.regression import Regression
from fluidjax.runs.cases import healthy_of
from fluidjax.runs.cohort import (
    STAGE_PURPOSES,
    check_cohort_of,
    derived_seed,
    identity,
    model_grid,
    open_cohort,
)
from fluidjax.runs.detector import configured
from fluidjax.runs.feed import Feed, some_volumes
from fluidjax.runs.length import Change, changes, go_on, in_steps, with_steered
from fluidjax.runs.load import Run, load_run
from fluidjax.runs.progress_picture import painter
from fluidjax.runs.stages import Stage, build_stages, fluid_settings
from fluidjax.training import checkpoint, parallel
from fluidjax.training.logs import mirrored
from fluidjax.training.loop import Watch, is_done, newest, state_template, train_stage
from fluidjax.training.stopping import StopRequest

Params = dict[str, Any]
FEW_STEPS = 1000
START = 'start.json'  # the step of the run that a run started from
# Where the scans lie; `cohort.json` says which they are.
PLACES = tuple(f'cohort.{name}' for name in ('data_dir', 'test_dir', 'lesion_dir', 'store'))
OUTSIDE = ('seed', 'size', 'cohort', 'start')  # what no stage knows, but its parameters depend on


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run whose settings were checked.

    Attributes:
        config: its configuration, with the steps of stages whose length is given in epochs.
        stages: built from it.
        feeds: the batches of each stage.
        cohort: of `data_pipelines.input_pipeline`.
        changed: stages that are trained for another time than in the run so far.
        start: parameter groups that the training starts from (`config.start`); may be empty.
        start_step: the step of their run, or of each of several.
    """

    config: ConfigDict
    stages: tuple[Stage, ...]
    feeds: list[Feed]
    cohort: Any
    changed: list[Change]
    start: Params
    start_step: int | list[int]


def train(
    config: ConfigDict,
    workdir: Path,
    wandb_project: str = '',
    profile: int = 0,
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Train the stages of a configuration; finished ones are skipped, unfinished ones resumed.

    A run can go on with other values of the fields in `length.STEERED`, for example more steps.
    Writes `config.json`, `cohort.json`, `checkpoints/<stage>`, `metrics.jsonl` and TensorBoard
    events. All settings are checked before anything is written or trained. With several processes
    only the first one writes; the others need no access to its `workdir`.

    Args:
        config: the configuration.
        workdir: the run's folder.
        wandb_project: project of Weights & Biases that gets the metrics too; empty: none.
        profile: number of dispatches of each stage to trace; 0: none.
        saved: called after each checkpoint was written.

    Raises:
        UserError: a field that does not fit, data that cannot be read, a workdir that cannot be
            written to, with another run or in which another command trains, or a loss that is not
            finite.
        Stopped: a signal asked for it; the run is saved.
    """
    with contextlib.ExitStack() as opened:
        stop = opened.enter_context(StopRequest())
        with parallel.together():
            if parallel.is_first():
                check_output(workdir, '--workdir')
            plan = _open_run(config, workdir)
            if parallel.is_first():
                advice = 'another command trains here; wait for it or choose another --workdir'
                opened.enter_context(files.locked(workdir / '.lock', advice))
                _write_identity(plan, workdir)
            _describe(plan.config, plan.stages, plan.feeds[-1], plan.cohort)
            names = [stage.method.stage for stage in plan.stages]
            mirror = opened.enter_context(mirrored(wandb_project, workdir, plan.config, names))
        watch = Watch(mirror=mirror, profile=profile, tell=_tell, saved=saved)
        _train_stages(plan, workdir, stop, watch)


def _tell(line: str) -> None:
    if parallel.is_first():
        cli.tell(line)


def _open_run(config: ConfigDict, workdir: Path) -> _Plan:
    """Check a configuration, and open its cohort. Writes nothing into the run's folder."""
    grid = model_grid(config)
    stages = build_stages(config, grid)
    if parallel.is_first():
        _refuse_another_run(config, stages, workdir, grid)
    configured(config, stages[-1].method)  # an evaluation would fail after the training
    for stage in stages:  # fails if shapes do not fit
        state_template(stage.method.init, stage.method.trainable, stage.training)
    layouts = [
        parallel.layout_of(stage.training.batch_size, stage.method.stage) for stage in stages
    ]
    cohort = open_cohort(config)
    config = in_steps(config, stages, cohort.sizes.get('train', 0))
    stages = build_stages(config, grid)
    old = _config_so_far(workdir) if parallel.is_first() else None
    changed = changes(workdir, build_stages(old, grid), stages) if old is not None else []
    feeds = [Feed(cohort, layout, seed) for layout, seed in zip(layouts, _seeds(config, stages))]
    start, start_step = {}, 0
    if parallel.is_first() and not all(
        checkpoint.latest_step(workdir / 'checkpoints' / stage.method.stage) for stage in stages
    ):
        start, start_step = _start_of(config, stages, workdir)
    return _Plan(config, stages, feeds, cohort, changed, start, start_step)


def _start_of(
    config: ConfigDict, stages: tuple[Stage, ...], workdir: Path
) -> tuple[Params, int | list[int]]:
    """The parameter groups that the stages start from, and the step of their run, or of each.

    Of several runs it is the mean of their parameters (Wortsman et al. 2022, arXiv:2203.05482).

    Raises:
        UserError: they are not those of the same method and size, or no longer those that the
            first stages of this run started from.
    """
    given = config.get('start', '')  # older runs have no such field
    if not given:
        return {}, 0
    names = [name.strip() for name in given.split(',')]
    runs = [_run_to_start_from(name, config, stages) for name in names]
    step = runs[0].step if len(runs) == 1 else [run.step for run in runs]
    path = workdir / START
    if path.is_file() and (before := files.read_json(path, 'delete it')['step']) != step:
        raise UserError(
            f'config.start: {given} is at step {step} now, and was at {before} when {workdir} '
            'began; begin in another --workdir'
        )
    groups = set.intersection(*(set(run.params) for run in runs))
    mean = lambda *leaves: sum(np.asarray(x, np.float32) / len(leaves) for x in leaves)
    start = {name: jax.tree.map(mean, *(run.params[name] for run in runs)) for name in groups}
    known = {name for stage in stages for name in _template(stage)}
    return {name: group for name, group in start.items() if name in known}, step


def _run_to_start_from(name: str, config: ConfigDict, stages: tuple[Stage, ...]) -> Run:
    run = load_run(Path(name).expanduser())
    if run.config.method != config.method:
        raise UserError(
            f'config.start: {name} is of the method {run.config.method}, not {config.method}'
        )
    for template in map(_template, stages):
        for group in set(template) & set(run.params):
            ours, theirs = (jax.tree.map(jnp.shape, tree[group]) for tree in (template, run.params))
            if ours != theirs:
                raise UserError(
                    f'config.start: the {group} of {name} has other sizes; start from a run with '
                    'the same size and networks'
                )
    return run


def _template(stage: Stage) -> Params:
    """Shapes of the parameters of a stage."""
    return jax.eval_shape(stage.method.init, jax.random.key(0))


def _config_so_far(workdir: Path) -> ConfigDict | None:
    """The configuration of the run in a folder; None if it has no checkpoints."""
    path = workdir / 'config.json'
    return load_config(path) if path.is_file() and (workdir / 'checkpoints').is_dir() else None


def _seeds(config: ConfigDict, stages: tuple[Stage, ...]) -> list[int]:
    """The seed of each stage; a regression beside other stages has that of one alone."""
    purposes, seeds = iter(STAGE_PURPOSES), []
    for stage in stages:
        beside = stage.method.stage == Regression.stage
        purpose = STAGE_PURPOSES[0] if beside and stage != stages[0] else next(purposes)
        seeds.append(derived_seed(config.seed, purpose))
    return seeds


def _write_identity(plan: _Plan, workdir: Path) -> None:
    path = workdir / 'cohort.json'
    check_cohort_of(workdir, path.read_text('utf-8') if path.is_file() else None, plan.cohort)
    for line in go_on(plan.changed):
        _tell(line)
    save_config(workdir / 'config.json', plan.config)
    files.write_json(path, identity(plan.cohort))
    if plan.start and not (workdir / START).is_file():
        files.write_json(workdir / START, {'step': plan.start_step})


def _describe(config: ConfigDict, stages: tuple[Stage, ...], feed: Feed, cohort: Any) -> None:
    """Print the method, the cohort and the devices, and what a user may want to change."""
    sizes = ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
    _tell(f'{config.method} on {cohort.name}: {sizes}; {_devices(feed.layout)}')
    for line in _advice(config, stages, cohort.sizes.get('train', 0)):
        _tell(line)


def _advice(config: ConfigDict, stages: tuple[Stage, ...], scans: int) -> list[str]:
    """Lines on settings that are as published or as usual, but do not suit this run."""
    lines = []
    if jax.default_backend() == 'tpu' and fluid_settings(config).scheme == 'flow_map':
        lines.append(
            'config.fluid.scheme: flow_map is slow on TPUs, because it gathers from memory; '
            '--config.fluid.scheme=koren transports the same lesions with stencils'
        )
    for stage in stages:
        name, training = f'config.{stage.method.stage}.training', stage.training
        if training.epochs and training.steps < FEW_STEPS:
            lines.append(
                f'{name}.epochs: {training.epochs} epochs of {scans} scans are only '
                f'{training.steps} steps; --{name}.epochs=0 trains for {name}.steps instead'
            )
        if isinstance(stage.method, LatentDiffusion) and stage.method.conditional:
            process = stage.method.process
            first, last = max(process.starts), process.num_steps
            if first < last // 2:
                lines.append(
                    f'config.diffusion.process.start_step: sampling starts at step {first} of '
                    f'{last}, as published, which keeps large lesions (docs/results.md, '
                    f'"Ablations"); --config.diffusion.process.start_step={last} starts from noise'
                )
    return lines


def _devices(layout: parallel.Layout) -> str:
    """The devices that a run trains on, in words."""
    kind, there = jax.devices()[0].platform, jax.device_count()
    used = len(layout.devices) * layout.processes
    if there == 1:
        return f'1 {kind} device'
    words = f'{used} {kind} devices, {layout.per_device} of {layout.batch_size} samples on each'
    if layout.processes > 1:
        words += f', {layout.processes} processes'
    if used < there:
        words += (
            f' ({there - used} stay idle: a batch of {layout.batch_size} cannot be shared by '
            f'{there})'
        )
    return words


def _train_stages(plan: _Plan, workdir: Path, stop: StopRequest, watch: Watch) -> None:
    stages, cohort, config = plan.stages, plan.cohort, plan.config
    with parallel.together():
        done = parallel.is_first() and _is_finished(stages[-1], workdir)
    if parallel.from_first(done):
        _tell(f'{workdir}: all stages are done')
        return
    trained: Params = {}
    for stage, feed, seed in zip(stages, plan.feeds, _seeds(config, stages), strict=True):
        method = stage.method

        def prepare(params: Params) -> Params:
            shared = {name: group for name, group in trained.items() if name in params}
            made = method.prepare(
                {**params, **shared}, some_volumes(healthy_of(config, cohort, 'train'))
            )
            # What the start was measured on belongs to its parameters, so it is kept with them.
            kept = {n: group for n, group in plan.start.items() if n in made and n not in shared}
            return {**made, **kept}

        shown = dataclasses.replace(
            watch, validation=feed.validation, picture=_picture(stage, config, cohort)
        )
        settings = stage.training
        with environment.training_in_memory(method.stage, settings.batch_size, settings.accumulate):
            trained |= train_stage(
                method, prepare, feed, settings, workdir, seed, feed.layout, stop, shown
            )


def _is_finished(stage: Stage, workdir: Path) -> bool:
    """Whether a stage has its last step, in a checkpoint that can be read."""
    folder, method = workdir / 'checkpoints' / stage.method.stage, stage.method
    if not is_done(folder, stage.training):  # nothing is read then
        return False
    newest(folder, state_template(method.init, method.trainable, stage.training), _tell)
    return is_done(folder, stage.training)


def _picture(stage: Stage, config: ConfigDict, cohort: Any) -> Any:
    """The function that draws a validation scan during training; None where no one is wanted."""
    if not stage.training.picture_every or not parallel.is_first():
        return None
    scan = next(iter(healthy_of(config, cohort, 'validation')))
    return painter(stage.method, model_grid(config), fluid_settings(config), scan.image, scan.brain)


def _refuse_another_run(
    config: ConfigDict, stages: tuple[Stage, ...], workdir: Path, grid: Grid
) -> None:
    """Check that the checkpoints in a workdir, if any, are of this configuration.

    Only `detect` may differ, and the fields that do not change the steps done (`length.STEERED`).
    Fields that older versions did not have count as their defaults. Folders of scans may differ
    too where the run says which scans they held, which is compared later (`check_cohort_of`).

    Args:
        config: the configuration.
        stages: built from it.
        workdir: the run's folder.
        grid: the model's grid.

    Raises:
        UserError: they are of another configuration.
    """
    old, new = _config_so_far(workdir), ConfigDict(config.to_dict())
    if old is None:
        return
    old = with_steered(old, new, differences(old, new))
    moved = PLACES if (workdir / 'cohort.json').is_file() else ()
    changed = [
        name
        for name in differences(old, new)
        if not name.startswith('detect.') and name not in moved
    ]
    outside = [name for name in changed if name.partition('.')[0] in OUTSIDE]
    if not old.get('start', '') and not new.get('start', ''):  # older runs have no such field
        outside = [name for name in outside if name != 'start']
    if not changed:
        return
    with contextlib.suppress(UserError):  # the old configuration cannot be built any more
        if not outside and build_stages(old, grid) == stages:
            return
    raise UserError(
        f'{workdir}: contains a run with another configuration (it differs in '
        f'{", ".join(changed[:4])}); choose another --workdir'
    )
