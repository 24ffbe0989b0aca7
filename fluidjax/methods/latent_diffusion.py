"""Diffusion of the healthy latent, with the scan as its condition or without (arXiv:2506.10233).

z_0 is the latent of a healthy image. The network is trained, from

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps,

to predict eps, or another target from which z_0 follows; it also sees the latent of the diseased
image of the pair. Sampling starts from the scan's latent, noised to a step t < T.

It is one method under four names. By `network.condition`: `vector`, `spatial` and `both` are
CondDiff (a second scale and shift), `concat` is cLDM, and `none` is LDM, which sees only healthy
scans. ICDM-3D is cLDM with pairs made by corruptions instead of the flow.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.diffusion import samplers
from fluidjax.diffusion.losses import denoising_loss
from fluidjax.diffusion.schedule import PREDICTIONS, Schedule, linear_schedule, q_sample
from fluidjax.methods.latents import LatentMethod, Params
from fluidjax.models.unet import UNet

SAMPLERS = ('ddpm', 'ddim', 'dpmpp', 'one_step')


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """Noise, target and sampling.

    Attributes:
        num_steps: T of the linear schedule.
        prediction: what the network predicts: 'eps' (published), 'v' or 'x0'.
        learned_variance: also learn the range of the variance, as published.
        centre_latents: subtract the mean latent of the training scans, position by position. With
            'v' and a zero output the reconstruction is then the mean brain: training starts there.
        time_bias: training draws the step as T u^(1 / time_bias), u uniform: 1 is uniform
            (published), larger values train more where a sampler of few steps works.
        min_snr: weight the squared error by min(SNR, min_snr) of x0 (Hang et al. 2023: 5); 0 for
            no weight.
        lesion_weight: additional weight of the squared error where a lesion touches a latent's
            voxels, as in `BridgeProcess` (published: 0).
        start_step: sampling starts from the scan's latent noised to this step (published: 250 of
            1000, where the lesion is still in it; num_steps starts from pure noise).
        start_steps: several such steps, whose counterparts are averaged; empty: start_step.
        sampler: 'ddpm', 'ddim', 'dpmpp' or 'one_step'.
        sampler_steps: evaluations of the network, except for 'one_step'.
        num_samples: counterparts averaged at each start, each from its own noise.
    """

    num_steps: int = 1000
    prediction: str = 'eps'
    learned_variance: bool = True
    centre_latents: bool = False
    time_bias: float = 1.0
    min_snr: float = 0.0
    lesion_weight: float = 0.0
    start_step: int = 250
    start_steps: tuple[int, ...] = ()
    sampler: str = 'ddpm'
    sampler_steps: int = 250
    num_samples: int = 1

    def __post_init__(self) -> None:
        for name, choices in (('prediction', PREDICTIONS), ('sampler', SAMPLERS)):
            value = getattr(self, name)
            self._check(value in choices, name, value, f'is not one of {", ".join(choices)}')
        limits = [('start_step', self.start_step, self.num_steps)]
        if self.sampler != 'one_step':  # which does not use it
            limits.append(('sampler_steps', self.sampler_steps, min(self.starts)))
        limits += [('start_steps', start, self.num_steps) for start in self.start_steps]
        for name, value, most in limits:
            self._check(1 <= value <= most, name, value, f'is not within 1..{most}')
        least_values = {'min_snr': 0, 'lesion_weight': 0, 'time_bias': 1, 'num_samples': 1}
        for name, least in least_values.items():
            value = getattr(self, name)
            self._check(value >= least, name, value, f'must be {least} or more')

    def _check(self, holds: bool, name: str, value: object, advice: str) -> None:
        check(holds, f'diffusion.process.{name}', value, advice)

    @property
    def starts(self) -> tuple[int, ...]:
        """The noise levels to sample from."""
        return self.start_steps or (self.start_step,)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion(LatentMethod):
    """Diffusion in the latent space of a trained autoencoder; fields as in `LatentMethod`."""

    process: DiffusionProcess

    stage = 'diffusion'

    @property
    def _schedule(self) -> Schedule:
        return linear_schedule(self.process.num_steps)

    def example_loss(
        self, params: Params, examples: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The denoising loss of latents, with new noise at new random steps."""
        _, k_t, k_eps = jax.random.split(key, 3)
        z, cond = examples['healthy'], examples.get('diseased')
        t = self._draw_steps(share.uniform(k_t, (z.shape[0],)))
        eps = share.normal(k_eps, z.shape)
        z_t = q_sample(self._schedule, z, t, eps)
        output = UNet(self.network).apply({'params': params['unet']}, z_t, t, cond)
        terms = denoising_loss(
            self._schedule,
            self.process.prediction,
            output,
            z,
            z_t,
            t,
            eps,
            self.process.min_snr,
            self._weight(examples, share),
        )
        terms = {name: jnp.mean(value) for name, value in terms.items()}
        loss = terms.pop('loss')
        return loss, {**terms, 'lesion_ml': examples['lesion_ml']}

    def _weight(self, examples: dict[str, jax.Array], share: Share) -> jax.Array | None:
        """Weights of the latents `(batch, x, y, z, 1)`, 1 on average; None if all are 1."""
        if not self.process.lesion_weight:
            return None
        weight = 1.0 + self.process.lesion_weight * examples['touched']
        return weight / share.device_mean(jnp.mean(weight))

    def _draw_steps(self, u: jax.Array) -> jax.Array:
        """Steps to train at, in 0..T-1, from uniform numbers."""
        u = u ** (1.0 / self.process.time_bias)
        return jnp.minimum(jnp.int32(u * self.process.num_steps), self.process.num_steps - 1)

    @property
    def is_random(self) -> bool:
        """Whether counterparts depend on the key: always, as sampling starts from noise."""
        return True

    @property
    def num_counterparts(self) -> int:
        """Number of samples: noise levels times seeds."""
        return len(self.process.starts) * self.process.num_samples

    def _samples(self, params: Params, z_scan: jax.Array, key: jax.Array) -> jax.Array:
        """`num_samples` from each noise level, in one vmapped call."""
        process, schedule = self.process, self._schedule
        cond = z_scan if self.conditional else None

        def denoise(z_t: jax.Array, t: jax.Array) -> jax.Array:
            return UNet(self.network).apply({'params': params['unet']}, z_t, t, cond)

        def sample(z_t: jax.Array, start: jax.Array, key: jax.Array) -> jax.Array:
            common = (denoise, schedule, z_t, start)
            steps, prediction = process.sampler_steps, process.prediction
            if process.sampler == 'one_step':
                return samplers.one_step(*common, prediction)
            if process.sampler == 'ddim':
                return samplers.ddim(*common, steps, prediction)
            if process.sampler == 'dpmpp':
                return samplers.dpmpp(*common, steps, prediction)
            return samplers.ddpm(*common, key, prediction, num_steps=steps)

        starts = np.repeat(process.starts, process.num_samples)
        keys = jax.random.split(key, len(starts))
        return samplers.ensemble(sample, schedule, z_scan, starts, keys)
