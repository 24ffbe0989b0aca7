"""Stage two: diffusion of the healthy latent, told of the scan or not (arXiv:2506.10233).

One method in four guises. By `network.condition`: `vector`, `spatial` and `both` are CondDiff (a
second scale and shift), `concat` is cLDM, `none` is LDM, which sees healthy scans alone. ICDM-3D is
cLDM whose pairs are made by corruptions instead of the flow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.share import WHOLE, Share
from fluidjax.diffusion import samplers
from fluidjax.diffusion.losses import denoising_loss
from fluidjax.diffusion.schedule import PREDICTIONS, Schedule, linear_schedule, q_sample
from fluidjax.methods import latents
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.unet import UNet, UNetConfig

Params = dict[str, Any]
SAMPLERS = ('ddpm', 'ddim', 'dpmpp', 'one_step')


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """Noise, target and sampling.

    Attributes:
        num_steps: T of the linear schedule.
        prediction: what the network gives: 'eps' (published), 'v' or 'x0'.
        learned_variance: also learn the variance's range, as published.
        centre_latents: subtract the mean latent of the training scans, position by position. With
            'v' and a zero output the reconstruction is then the mean brain: training starts there.
        time_bias: training draws the step as T u^(1 / time_bias), u uniform: 1 is uniform
            (published), larger spends the training where a few-step sampler works.
        min_snr: weigh the squared error by min(SNR, min_snr) of x0 (Hang et al. 2023: 5); 0 not.
        start_step: sampling starts from the scan's latent noised to this step (published: 250 of
            1000, where the lesion is still in it; num_steps starts from pure noise).
        start_steps: several such steps, to average the counterparts of all; empty: start_step.
        sampler: 'ddpm', 'ddim', 'dpmpp' or 'one_step'.
        sampler_steps: evaluations of the network, but for 'one_step'.
        num_samples: counterparts averaged at each start, each from noise of its own.
    """

    num_steps: int = 1000
    prediction: str = 'eps'
    learned_variance: bool = True
    centre_latents: bool = False
    time_bias: float = 1.0
    min_snr: float = 0.0
    start_step: int = 250
    start_steps: tuple[int, ...] = ()
    sampler: str = 'ddpm'
    sampler_steps: int = 250
    num_samples: int = 1

    def __post_init__(self) -> None:
        for field, choices in (('prediction', PREDICTIONS), ('sampler', SAMPLERS)):
            if getattr(self, field) not in choices:
                raise UserError(
                    f'config.diffusion.process.{field}: {getattr(self, field)!r} is '
                    f'not one of {", ".join(choices)}'
                )
        limits = [
            ('start_step', self.start_step, self.num_steps),
            ('sampler_steps', self.sampler_steps, min(self.starts)),
        ]
        limits += [('start_steps', start, self.num_steps) for start in self.start_steps]
        for field, value, most in limits:
            if not 1 <= value <= most:
                raise UserError(
                    f'config.diffusion.process.{field}: {value} is not within 1..{most}'
                )
        if not self.min_snr >= 0:
            raise UserError(f'config.diffusion.process.min_snr: {self.min_snr} must be 0 or more')
        for field in ('time_bias', 'num_samples'):
            if getattr(self, field) < 1:
                raise UserError(f'config.diffusion.process.{field}: must be 1 or more')

    @property
    def starts(self) -> tuple[int, ...]:
        """The noise levels to sample from."""
        return self.start_steps or (self.start_step,)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """Diffusion in the latent space of a trained autoencoder.

    Attributes:
        autoencoder: stage one.
        network: the U-Net, with its way of being conditioned.
        process: noise, target and sampling.
        pairs: how training pairs are made.
    """

    autoencoder: AutoencoderMethod
    network: UNetConfig
    process: DiffusionProcess
    pairs: PairMaker

    stage = 'diffusion'
    trainable = ('unet',)
    needs_mask = False

    @property
    def conditional(self) -> bool:
        """Whether the network is told of the scan."""
        return self.network.condition != 'none'

    @property
    def _schedule(self) -> Schedule:
        return linear_schedule(self.process.num_steps)

    def init(self, key: jax.Array) -> Params:
        """Random U-Net and autoencoder, latents neither centred nor scaled."""
        k_unet, k_auto = jax.random.split(key)
        shape = self.autoencoder.latent_shape
        z = jnp.zeros((1, *shape))
        cond = z if self.conditional else None
        return {
            'unet': UNet(self.network).init(k_unet, z, jnp.zeros((1,), jnp.int32), cond)['params'],
            'autoencoder': self.autoencoder.init(k_auto)['autoencoder'],
            'latent': latents.unmeasured(shape),
        }

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Measure mean and scale of the latents of training scans; see `latents.prepare`."""
        return latents.prepare(self.autoencoder, params, volumes, self.process.centre_latents)

    def encode(self, params: Params, volumes: jax.Array) -> jax.Array:
        """Normalised latents of volumes."""
        return latents.encode(self.autoencoder, params, volumes)

    def decode(self, params: Params, z: jax.Array) -> jax.Array:
        """Volumes of normalised latents."""
        return latents.decode(self.autoencoder, params, z)

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The denoising loss of fresh pairs, each at a random step."""
        return self.example_loss(params, self.examples(params, batch, key, share), key, share)

    def examples(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> dict[str, jax.Array]:
        """Latents of fresh pairs, `(batch, ...)`; they hang on frozen parameters alone."""
        pair = self.pairs(batch, jax.random.split(key, 3)[0], share)
        made = {
            'healthy': self.encode(params, pair.healthy),
            'lesion_ml': self.pairs.lesion_ml(pair),
        }
        if self.conditional:
            made['diseased'] = self.encode(params, pair.diseased)
        return jax.lax.stop_gradient(made)

    def example_loss(
        self, params: Params, examples: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of given latents, with new noise at new random steps."""
        _, k_t, k_eps = jax.random.split(key, 3)
        z, cond = examples['healthy'], examples.get('diseased')
        t = self._draw_steps(share.uniform(k_t, (z.shape[0],)))
        eps = share.normal(k_eps, z.shape)
        z_t = q_sample(self._schedule, z, t, eps)
        output = UNet(self.network).apply({'params': params['unet']}, z_t, t, cond)
        terms = denoising_loss(
            self._schedule, self.process.prediction, output, z, z_t, t, eps, self.process.min_snr
        )
        terms = {name: jnp.mean(value) for name, value in terms.items()}
        loss = terms.pop('loss')
        return loss, {**terms, 'lesion_ml': examples['lesion_ml']}

    def _draw_steps(self, u: jax.Array) -> jax.Array:
        """Steps to train at, in 0..T-1, of uniform numbers."""
        u = u ** (1.0 / self.process.time_bias)
        return jnp.minimum(jnp.int32(u * self.process.num_steps), self.process.num_steps - 1)

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)` in [0, 1], shaped alike.

        The scan's latent is noised to `start_step` and denoised with the scan as the condition;
        with several samples their mean latent is decoded.
        """
        scans, peak = by_its_maximum(volumes)
        z_scan = self.encode(params, scans)
        return peak * self.decode(params, self._samples(params, z_scan, key).mean(axis=0))

    @property
    def num_counterparts(self) -> int:
        """How many counterparts of a scan `counterparts` gives: seeds times noise levels."""
        return len(self.process.starts) * self.process.num_samples

    def counterparts(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Every sample as a volume of its own, `(n, batch, x, y, z, 1)`; see `reconstruct`."""
        scans, peak = by_its_maximum(volumes)
        samples = self._samples(params, self.encode(params, scans), key)
        return jax.lax.map(lambda z: peak * self.decode(params, z), samples)

    def _samples(self, params: Params, z_scan: jax.Array, key: jax.Array) -> jax.Array:
        """Latents `(n, batch, ...)`: `num_samples` from each noise level, in one vmapped call."""
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
        return samplers.ensemble(
            sample, schedule, z_scan, starts, jax.random.split(key, len(starts))
        )
