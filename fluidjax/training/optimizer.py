"""The optimiser of both stages: AdamW, a schedule with warm-up, clipping before the update."""

from __future__ import annotations

import dataclasses

import optax

from fluidjax.base.errors import UserError

DECAYS = ('constant', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW as both stages use it.

    Attributes:
        learning_rate: the peak, reached after `warmup_steps`.
        warmup_steps: linear rise from zero.
        decay: 'constant', or 'cosine' to a hundredth of the peak at the last step.
        weight_decay: decoupled, zero in the published configuration.
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
        for field in ('learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm'):
            if not getattr(self, field) >= 0:
                raise UserError(f'optimizer.{field} is {getattr(self, field)}: must be 0 or more')
        if self.decay not in DECAYS:
            raise UserError(f"optimizer.decay is '{self.decay}': use {' or '.join(DECAYS)}")


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
    """AdamW over parameter groups, each group clipped by its own norm.

    Groups are clipped apart because they can be adversaries: a discriminator's large gradient
    must not shrink the step of the autoencoder.
    """
    schedule = learning_rate_schedule(settings, total_steps)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()

    def one_group() -> optax.GradientTransformation:
        adamw = optax.adamw(schedule, b2=settings.b2, weight_decay=settings.weight_decay)
        return optax.chain(clip, adamw)

    labels = {name: name for name in groups}
    return optax.partition({name: one_group() for name in groups}, labels)
