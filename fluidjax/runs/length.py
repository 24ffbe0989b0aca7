"""How long the stages of a run are trained: epochs as steps, and runs that are made longer."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.base.settings import field_of
from fluidjax.runs.cohort import model_grid, open_cohort
from fluidjax.runs.stages import Stage, build_stages
from fluidjax.training import checkpoint
from fluidjax.training.loop import ended_early, is_done
from fluidjax.training.settings import StageSettings, learning_rate_schedule

# Fields of a stage's training that may change in a run: those that the steps done do not depend on,
# and `accumulate`, which makes a run that was out of memory fit.
STEERED = (
    'steps',
    'epochs',
    'accumulate',
    'log_every',
    'checkpoint_every',
    'validate_every',
    'picture_every',
    'patience',
)


def in_steps(config: ConfigDict, stages: tuple[Stage, ...], scans: int) -> ConfigDict:
    """A configuration in which the stages given in epochs have their number of steps.

    Everything else (schedules, `load_run`, packages) reads only the steps, so this is done once,
    before training, and the result is the run's `config.json`.

    Args:
        config: the configuration; it stays as it is.
        stages: built from it.
        scans: number of training scans. An epoch is as many samples, rounded up to whole steps at
            the end of the stage and to a multiple of `reuse`.
    """
    result = copy.deepcopy(config)
    for stage in stages:
        training = stage.training
        if training.epochs:
            steps = -(-training.epochs * scans // training.batch_size)
            rounded = -(-steps // training.reuse) * training.reuse
            result[stage.method.stage].training.steps = rounded
    return result


def resolved(config: ConfigDict) -> ConfigDict:
    """A configuration as `train` keeps it in `config.json`: see `in_steps`.

    The cohort is opened only where a stage is given in epochs.

    Raises:
        UserError: a field that does not fit, or scans that cannot be used.
    """
    stages = build_stages(config, model_grid(config))
    if not any(stage.training.epochs for stage in stages):
        return config
    return in_steps(config, stages, open_cohort(config).sizes.get('train', 0))


def with_steered(old: ConfigDict, new: ConfigDict, changed: list[str]) -> ConfigDict:
    """A run's old configuration with those of its changed fields that may change taken from a new.

    Steps that become or were 0 are not taken over: they add or remove a stage.

    Args:
        old, new: the configurations.
        changed: dotted names of the fields in which they differ.
    """
    result = copy.deepcopy(old)
    for name in changed:
        section, _, field = name.rpartition('.')
        value = field_of(new, name)
        switched = field == 'steps' and not (value and field_of(old, name))
        if not section.endswith('.training') or field not in STEERED or switched:
            continue
        training = field_of(result, section)
        if value is None:  # a configuration from before the field
            del training[field]
        else:
            training[field] = value
    return result


@dataclasses.dataclass(frozen=True)
class Change:
    """A stage whose training settings changed since a run was last trained.

    Attributes:
        name: of the stage.
        folder: of its checkpoints.
        before, after: its settings.
        done: number of steps done.
    """

    name: str
    folder: Path
    before: StageSettings
    after: StageSettings
    done: int

    @property
    def extended(self) -> bool:
        """Whether it ended early, and has more steps now."""
        return self.after.steps > self.before.steps and ended_early(self.folder, self.before)

    @property
    def goes_on(self) -> bool:
        """Whether it is trained on."""
        return self.extended or not is_done(self.folder, self.after)


def changes(workdir: Path, old: tuple[Stage, ...], new: tuple[Stage, ...]) -> list[Change]:
    """What changes in the training settings of a run's stages.

    Args:
        workdir: the run's folder.
        old, new: its stages as trained so far, and as they are to be trained from now on.

    Raises:
        UserError: a stage has done as many steps already, or would be trained on although a later
            stage, which depends on it, has begun.
    """
    found = []
    for number, (a, b) in enumerate(zip(old, new, strict=True)):
        if a.training == b.training:
            continue
        done = checkpoint.latest_step(_folder(workdir, b)) or 0
        change = Change(b.method.stage, _folder(workdir, b), a.training, b.training, done)
        _check_steps(workdir, change)
        for later in new[number + 1 :]:
            if change.goes_on and checkpoint.latest_step(_folder(workdir, later)) is not None:
                raise UserError(
                    f'config.{change.name}.training: with these settings the {change.name} stage '
                    f'would be trained on after step {done}, but the {later.method.stage} stage, '
                    f'which depends on it, has begun in {workdir}; keep its steps and patience, or '
                    'choose another --workdir'
                )
        found.append(change)
    return found


def _check_steps(workdir: Path, change: Change) -> None:
    steps, before, done = change.after.steps, change.before.steps, change.done
    if steps != before and steps <= done:
        raise UserError(
            f'config.{change.name}.training.steps: {steps} is not more than the {done} steps that '
            f'are done in {workdir}; set more, or choose another --workdir'
        )


def _folder(workdir: Path, stage: Stage) -> Path:
    return workdir / 'checkpoints' / stage.method.stage


def go_on(found: list[Change]) -> list[str]:
    """Let stages that ended early and have more steps now go on; returns a line on each new length.

    Call it before the new configuration is written: until then it can be repeated.
    """
    for change in found:
        if change.extended:
            checkpoint.let_go_on(change.folder, change.done)
    longer = [each for each in found if each.done and each.after.steps != each.before.steps]
    return [_words(change) for change in longer]


def _words(change: Change) -> str:
    before, after = change.before, change.after
    words = f'{change.name}: {change.done} steps are done, of {after.steps} now instead of '
    words += f'{before.steps}'
    if after.optimizer.decay == 'constant':
        return words
    old, new = (
        float(learning_rate_schedule(each.optimizer, each.steps)(change.done))
        for each in (before, after)
    )
    return words + (
        f'; the learning rate follows the {after.optimizer.decay} schedule of the new length from '
        f'here: {new:.3g} instead of {old:.3g}'
    )
