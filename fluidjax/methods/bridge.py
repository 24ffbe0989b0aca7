"""`fluidjax`, our own method: a bridge from the scan's latent to its healthy counterpart's.

Diffusion starts from noise and is guided to the scan by its condition. A bridge starts from the
scan: z_t lies between the healthy latent z_0 and the diseased one z_1,

    z_t = (1 - t) z_0 + t z_1 + noise sqrt(t (1 - t)) eps,

a Brownian bridge (I2SB, Liu et al. 2023, with constant beta = noise^2), or with no noise the
straight paths of flow matching (Lipman et al. 2023). The network predicts the change from z_t to
z_0. An untrained network therefore returns the scan, and one step from t = 1 is regression in the
latent space.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.methods.latents import LatentMethod, Params
from fluidjax.models.unet import UNet

ERRORS = ('squared', 'absolute')
TIME_SCALE = 1000.0  # t in [0, 1], for an embedding made for 1000 steps


@dataclasses.dataclass(frozen=True)
class BridgeProcess:
    """Paths, loss and sampling.

    Attributes:
        noise: sqrt(beta) of the bridge, in units of the latents' standard deviation; 0 for
            straight paths.
        time_bias: training draws t as u^(1 / time_bias), u uniform: larger than 1 prefers the end
            where sampling starts.
        error: 'squared' gives the mean of the healthy latents that fit a scan, 'absolute' their
            median, which leaves tissue unchanged that is more likely healthy than not.
        centre_latents: subtract the mean latent of the training scans.
        lesion_weight: additional weight of the error where a lesion touches a latent's voxels.
            Lesions fill a few per cent of a brain, and without it half of their contrast stays.
        sampler_steps: evaluations of the network.
        num_samples: counterparts averaged. They differ only by the noise that is added between
            steps, so more than one needs noise and at least two steps.
    """

    noise: float = 0.0
    time_bias: float = 1.0
    error: str = 'squared'
    centre_latents: bool = True
    lesion_weight: float = 0.0
    sampler_steps: int = 10
    num_samples: int = 1

    def __post_init__(self) -> None:
        where = 'bridge.process'
        choices = ', '.join(ERRORS)
        check(self.error in ERRORS, f'{where}.error', self.error, f'is not one of {choices}')
        for name in ('noise', 'lesion_weight'):
            value = getattr(self, name)
            check(value >= 0, f'{where}.{name}', value, 'must be 0 or more')
        for name in ('time_bias', 'sampler_steps', 'num_samples'):
            value = getattr(self, name)
            check(value >= 1, f'{where}.{name}', value, 'must be 1 or more')
        check(
            self.num_samples == 1 or (self.noise > 0 and self.sampler_steps >= 2),
            f'{where}.num_samples',
            self.num_samples,
            f'would give the same counterpart again and again; set it to 1, or {where}.noise above '
            f'0 and {where}.sampler_steps to 2 or more',
        )


@dataclasses.dataclass(frozen=True)
class LatentBridge(LatentMethod):
    """A bridge in the latent space of a trained autoencoder; fields as in `LatentMethod`."""

    process: BridgeProcess

    stage = 'bridge'

    def example_loss(
        self, params: Params, examples: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Error of the healthy latents predicted from random places of the paths."""
        _, k_t, k_eps = jax.random.split(key, 3)
        z_0, z_1 = examples['healthy'], examples['diseased']
        t = share.uniform(k_t, (len(z_0),)) ** (1.0 / self.process.time_bias)
        z_t = between(z_0, z_1, t, self.process.noise, share.normal(k_eps, z_0.shape))
        error = self._healthy(params, z_t, t, z_1) - z_0
        mse = jnp.mean(error**2)
        cost = error**2 if self.process.error == 'squared' else jnp.abs(error)
        weight = 1.0 + self.process.lesion_weight * examples['touched']
        loss = jnp.mean(weight * cost) / share.device_mean(jnp.mean(weight))
        return loss, {'mse': mse, 'lesion_ml': examples['lesion_ml']}

    @property
    def is_random(self) -> bool:
        """Whether counterparts depend on the key; those of a single step do not."""
        return self.process.noise > 0 and self.process.sampler_steps > 1

    @property
    def num_counterparts(self) -> int:
        """Number of samples."""
        return self.process.num_samples

    def _samples(self, params: Params, z_scan: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, self.process.num_samples)
        return jax.vmap(lambda k: self._sample(params, z_scan, k))(keys)

    def _healthy(
        self, params: Params, z_t: jax.Array, t: jax.Array, z_scan: jax.Array
    ) -> jax.Array:
        """The healthy latent expected at z_t, t (batch,)."""
        theta = {'params': params['unet']}
        return z_t - UNet(self.network).apply(theta, z_t, TIME_SCALE * t, z_scan)

    def _sample(self, params: Params, z_scan: jax.Array, key: jax.Array) -> jax.Array:
        """From t = 1 to 0, each step to q(z_s | z_t, expected z_0).

        The steps are spaced as training draws t, evenly in t^time_bias.
        """
        times = jnp.linspace(1.0, 0.0, self.process.sampler_steps + 1)
        times = times ** (1.0 / self.process.time_bias)

        def step(z_t: jax.Array, at: tuple) -> tuple[jax.Array, None]:
            t, s, k = at
            z_0 = self._healthy(params, z_t, jnp.full(len(z_t), t), z_scan)
            spread = self.process.noise * jnp.sqrt(s * (t - s) / t)
            return z_0 + s / t * (z_t - z_0) + spread * jax.random.normal(k, z_t.shape), None

        keys = jax.random.split(key, self.process.sampler_steps)
        return jax.lax.scan(step, z_scan, (times[:-1], times[1:], keys))[0]


def between(
    z_0: jax.Array, z_1: jax.Array, t: jax.Array, noise: float, eps: jax.Array
) -> jax.Array:
    """z_t of the bridge between z_0 and z_1 `(batch, ...)` at times t `(batch,)` in [0, 1]."""
    t = t.reshape(t.shape + (1,) * (z_0.ndim - 1))
    return (1.0 - t) * z_0 + t * z_1 + noise * jnp.sqrt(t * (1.0 - t)) * eps
