"""How one stage is trained: its length and batch, and its optimiser.

The optimiser is AdamW with a schedule with warm-up; gradients are clipped before the update.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import optax

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check, settings_from

DECAYS = ('constant', 'cosine')
REDUCE_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, as all stages use it.

    Attributes:
        learning_rate: the peak, reached after `warmup_steps`.
        warmup_steps: linear rise from zero.
        decay: 'constant', or 'cosine' to a hundredth of the peak at the last step.
        weight_decay: decoupled; zero in the published configuration.
        clip_norm: largest global gradient norm of each parameter group; 0 turns it off. (The
            published code clips before the gradients exist, so it has no effect there.)
        b2: decay rate of the second moment.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: str = 'constant'
    weight_decay: float = 0.0
    clip_norm: float = 0.1
    b2: float = 0.999

    def __post_init__(self) -> None:
        for name in ('learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm'):
            value = getattr(self, name)
            check(value >= 0, f'training.optimizer.{name}', value, 'must be 0 or more')
        known = self.decay in DECAYS
        check(known, 'training.optimizer.decay', self.decay, f'is not one of {", ".join(DECAYS)}')


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """How long and how one stage is trained.

    Attributes:
        steps: number of optimiser steps.
        epochs: the length in epochs of the training scans instead; 0: `steps` holds. The number of
            steps follows when the cohort is opened (`fluidjax.runs.length`), and replaces `steps`.
        batch_size: samples of one step, over all devices of all processes.
        optimizer: see `OptimizerSettings`.
        ema_decay: decay of the parameters' moving average.
        log_every: steps between two lines of metrics; each is the mean over the steps between.
        checkpoint_every: steps between two checkpoints; there is always one at the end.
        validate_every: steps between two losses on the validation scans, by which the best
            checkpoint is kept; 0: never. Before each there is a checkpoint.
        patience: the stage ends after this many validations in a row without a loss that is lower
            than the lowest before by a thousandth of it; 0: never before its last step.
        picture_every: steps between two pictures of a validation scan; 0: never.
        accumulate: parts, at least so many, in which a device goes through its samples, to save
            memory; a device with fewer samples takes one at a time.
        reuse: steps for which the latents of one batch are used; 1: new pairs at every step. Only
            for latent methods, where encoding is most of the cost of new pairs.
        pool: number of such batches that are kept; each step draws its samples from them.
        reduce_dtype: type in which devices send each other gradients: 'float32', or 'bfloat16',
            which is half the bytes.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerSettings
    ema_decay: float = 0.9999
    log_every: int = 50
    checkpoint_every: int = 1000
    validate_every: int = 0
    picture_every: int = 0
    accumulate: int = 1
    reuse: int = 1
    pool: int = 1
    reduce_dtype: str = 'float32'
    epochs: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        at_least_0 = ('validate_every', 'picture_every', 'epochs', 'patience')
        in_steps = ('steps', 'log_every', 'checkpoint_every', 'validate_every', 'picture_every')
        others = ('epochs', 'patience', 'batch_size', 'accumulate', 'reuse', 'pool')
        for name in (*in_steps, *others):
            value, least = getattr(self, name), 0 if name in at_least_0 else 1
            check(value >= least, f'training.{name}', value, f'must be {least} or more')
        advice = 'needs losses on the validation scans: set training.validate_every'
        check(not self.patience or self.validate_every, 'training.patience', self.patience, advice)
        advice = f'must be a multiple of training.reuse, {self.reuse}'
        for name in in_steps:
            value = getattr(self, name)
            check(value % self.reuse == 0, f'training.{name}', value, advice)
        known = self.reduce_dtype in REDUCE_DTYPES
        advice = f'is not one of {", ".join(REDUCE_DTYPES)}'
        check(known, 'training.reduce_dtype', self.reduce_dtype, advice)

    @property
    def pooled(self) -> bool:
        """Whether steps draw from kept latents instead of making new pairs."""
        return self.reuse > 1 or self.pool > 1


def stage_settings(values: Mapping[str, Any], stage: str) -> StageSettings:
    """The settings in `config.STAGE.training`.

    Args:
        values: of that section.
        stage: its name, for messages.

    Raises:
        UserError: a field that is unknown, missing or does not fit.
    """
    where = f'{stage}.training'
    try:
        return settings_from(StageSettings, values, where)
    except UserError as error:  # the classes above do not know the stage
        named = re.sub(rf'(?<!{re.escape(stage)}\.)\btraining\.', f'{where}.', str(error))
        raise UserError(named) from error


def learning_rate_schedule(settings: OptimizerSettings, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step."""
    peak = settings.learning_rate
    if settings.decay == 'constant':
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - settings.warmup_steps), 0.01)
    if settings.warmup_steps <= 0:
        return after
    rise = optax.linear_schedule(0.0, peak, settings.warmup_steps)
    return optax.join_schedules([rise, after], [settings.warmup_steps])


def make_optimizer(
    settings: OptimizerSettings, total_steps: int, groups: tuple[str, ...]
) -> optax.GradientTransformation:
    """AdamW over parameter groups, each clipped by its own norm.

    Groups are clipped separately because they can be adversaries: a large gradient of the
    discriminator must not shrink the step of the autoencoder.
    """
    schedule = learning_rate_schedule(settings, total_steps)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()

    def one_group() -> optax.GradientTransformation:
        adamw = optax.adamw(schedule, b2=settings.b2, weight_decay=settings.weight_decay)
        return optax.chain(clip, adamw)

    labels = {name: name for name in groups}
    return optax.partition({name: one_group() for name in groups}, labels)
