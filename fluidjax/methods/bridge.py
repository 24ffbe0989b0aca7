"""`fluidjax`, our own method: a bridge from the scan's latent to its healthy counterpart's.

Diffusion starts from noise and must find the scan again through its condition. A bridge starts from
the scan: z_t lies between the healthy latent z_0 and the diseased one z_1,

    z_t = (1 - t) z_0 + t z_1 + noise sqrt(t (1 - t)) eps,

a Brownian bridge (I2SB, Liu et al. 2023, with constant beta = noise^2), or with no noise the
straight paths of flow matching (Lipman et al. 2023). The network gives the change from z_t to z_0,
so that before any training the counterpart is the scan, and one step from t = 1 is regression in
the latent space.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.share import WHOLE, Share
from fluidjax.methods import latents
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.unet import UNet, UNetConfig

Params = dict[str, Any]
ERRORS = ('squared', 'absolute')
TIME_SCALE = 1000.0  # t in [0, 1] for an embedding made for 1000 steps


@dataclasses.dataclass(frozen=True)
class BridgeProcess:
    """Paths, loss and sampling.

    Attributes:
        noise: sqrt(beta) of the bridge, in units of the latents' standard deviation; 0 for
            straight paths.
        time_bias: training draws t as u^(1 / time_bias), u uniform: larger than 1 prefers the end
            where sampling starts.
        error: 'squared' gives the mean of the healthy latents that fit a scan, 'absolute' their
            median, which leaves tissue alone that is more likely healthy than not.
        centre_latents: subtract the mean latent of the training scans.
        lesion_weight: how much more the error counts where a lesion touches a latent's voxels.
            Lesions fill a few per cent of a brain, and without it half of their contrast stays.
        sampler_steps: evaluations of the network.
        num_samples: counterparts averaged; more than one needs noise and steps.
    """

    noise: float = 0.0
    time_bias: float = 1.0
    error: str = 'squared'
    centre_latents: bool = True
    lesion_weight: float = 0.0
    sampler_steps: int = 10
    num_samples: int = 1

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise UserError(
                f'config.bridge.process.error: {self.error!r} is not one of {", ".join(ERRORS)}'
            )
        for field, least in (
            ('noise', 0.0),
            ('time_bias', 1.0),
            ('sampler_steps', 1),
            ('num_samples', 1),
            ('lesion_weight', 0.0),
        ):
            if not getattr(self, field) >= least:
                raise UserError(
                    f'config.bridge.process.{field}: {getattr(self, field)} must be {least} or more'
                )


@dataclasses.dataclass(frozen=True)
class LatentBridge:
    """A bridge in the latent space of a trained autoencoder.

    Attributes:
        autoencoder: stage one.
        network: the U-Net, told of the scan beside z_t.
        process: paths, loss and sampling.
        pairs: how training pairs are made.
    """

    autoencoder: AutoencoderMethod
    network: UNetConfig
    process: BridgeProcess
    pairs: PairMaker

    stage = 'bridge'
    trainable = ('unet',)
    needs_mask = False

    def init(self, key: jax.Array) -> Params:
        """Random U-Net and autoencoder, latents neither centred nor scaled."""
        k_unet, k_auto = jax.random.split(key)
        shape = self.autoencoder.latent_shape
        z = jnp.zeros((1, *shape))
        return {
            'unet': UNet(self.network).init(k_unet, z, jnp.zeros((1,)), z)['params'],
            'autoencoder': self.autoencoder.init(k_auto)['autoencoder'],
            'latent': latents.unmeasured(shape),
        }

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Measure mean and scale of the latents of training scans; see `latents.prepare`."""
        return latents.prepare(self.autoencoder, params, volumes, self.process.centre_latents)

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Error of the healthy latents found from random places of fresh pairs' paths."""
        return self.example_loss(params, self.examples(params, batch, key, share), key, share)

    def examples(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> dict[str, jax.Array]:
        """Latents of fresh pairs, `(batch, ...)`; they hang on frozen parameters alone."""
        pair = self.pairs(batch, jax.random.split(key, 3)[0], share)
        made = {
            name: latents.encode(self.autoencoder, params, image)
            for name, image in (('healthy', pair.healthy), ('diseased', pair.diseased))
        }
        made |= {
            'touched': touched(pair.mask, made['healthy'].shape),
            'lesion_ml': self.pairs.lesion_ml(pair),
        }
        return jax.lax.stop_gradient(made)

    def example_loss(
        self, params: Params, examples: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of given latents, with new noise at new random places of their paths."""
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

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)` in [0, 1], shaped alike."""
        scans, peak = by_its_maximum(volumes)
        samples = self._samples(params, scans, key)
        return peak * latents.decode(self.autoencoder, params, samples.mean(axis=0))

    @property
    def num_counterparts(self) -> int:
        """How many counterparts of a scan `counterparts` gives."""
        return self.process.num_samples

    def counterparts(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Every sample as a volume of its own, `(n, batch, x, y, z, 1)`; see `reconstruct`."""
        scans, peak = by_its_maximum(volumes)
        samples = self._samples(params, scans, key)
        return jax.lax.map(lambda z: peak * latents.decode(self.autoencoder, params, z), samples)

    def _samples(self, params: Params, scans: jax.Array, key: jax.Array) -> jax.Array:
        """Latents `(n, batch, ...)` of scans in [0, 1]."""
        z_scan = latents.encode(self.autoencoder, params, scans)
        keys = jax.random.split(key, self.process.num_samples)
        return jax.vmap(lambda k: self._sample(params, z_scan, k))(keys)

    def _healthy(
        self, params: Params, z_t: jax.Array, t: jax.Array, z_scan: jax.Array
    ) -> jax.Array:
        """The healthy latent expected at z_t, t (batch,)."""
        return z_t - UNet(self.network).apply(
            {'params': params['unet']}, z_t, TIME_SCALE * t, z_scan
        )

    def _sample(self, params: Params, z_scan: jax.Array, key: jax.Array) -> jax.Array:
        """From t = 1 to 0, each step to q(z_s | z_t, expected z_0).

        The steps are as dense as training was, even in t^time_bias.
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


def touched(mask: jax.Array, latent_shape: tuple[int, ...]) -> jax.Array:
    """1 at the latents `(batch, x, y, z, 1)` whose blocks of voxels a lesion touches, else 0."""
    blocks = [(n, m // n) for n, m in zip(latent_shape[1:4], mask.shape[1:4], strict=True)]
    split = mask.reshape(len(mask), *(size for pair in blocks for size in pair))
    return split.max(axis=(2, 4, 6))[..., None]
