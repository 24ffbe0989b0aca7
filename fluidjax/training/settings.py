"""How one stage is trained."""

from __future__ import annotations

import dataclasses

from fluidjax.base.errors import UserError
from fluidjax.training.optimizer import OptimizerSettings

REDUCE_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """How long and how one stage is trained.

    Attributes:
        steps: number of optimiser steps.
        batch_size: samples of one step, over all devices of all processes.
        optimizer: see `OptimizerSettings`.
        ema_decay: decay of the parameters' moving average.
        log_every: steps between two lines of metrics (each the mean of the steps between).
        checkpoint_every: steps between two checkpoints; there is always one at the end.
        validate_every: steps between two losses on the validation scans, by which the best
            checkpoint is kept; 0: never.
        picture_every: steps between two pictures of a validation scan; 0: never.
        accumulate: parts in which a device goes through its samples, for less memory.
        reuse: steps for which the latents of one batch are used; 1: new pairs at every step.
            Latent methods alone: what fresh pairs cost there is their encoding.
        pool: how many such batches are kept, of which each step draws its samples.
        reduce_dtype: 'float32', or 'bfloat16' to halve what devices send each other of gradients.
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

    def __post_init__(self) -> None:
        for field, least in (
            ('steps', 1),
            ('batch_size', 1),
            ('log_every', 1),
            ('checkpoint_every', 1),
            ('validate_every', 0),
            ('picture_every', 0),
            ('accumulate', 1),
            ('reuse', 1),
            ('pool', 1),
        ):
            if getattr(self, field) < least:
                raise UserError(
                    f'training.{field} is {getattr(self, field)}: it must be {least} or more'
                )
        if self.reduce_dtype not in REDUCE_DTYPES:
            raise UserError(
                f"training.reduce_dtype is '{self.reduce_dtype}': use {' or '.join(REDUCE_DTYPES)}"
            )
        for field in ('steps', 'log_every', 'checkpoint_every', 'validate_every', 'picture_every'):
            if getattr(self, field) % self.reuse:
                raise UserError(
                    f'training.{field} is {getattr(self, field)}: with training.reuse '
                    f'{self.reuse} it must be a multiple of that'
                )

    @property
    def pooled(self) -> bool:
        """Whether steps draw from kept latents instead of new pairs of their own."""
        return self.reuse > 1 or self.pool > 1
