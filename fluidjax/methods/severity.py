"""Restoration by severity, in image space, after DISYRE (arXiv:2311.15453) and v2 (2407.06635).

Between a healthy image x_0 and its diseased one x_1 lie images of every severity s in [0, 1],

    x_s = x_0 + s (x_1 - x_0).

The network sees x_s and s and predicts x_0. (With `identity` it predicts a correction that is added
to x_s; trained so for the demo's 1300 steps it returned scans unchanged.) A scan is taken for an
image of severity 1 and is restored in a few steps to severity 0, each by a part of the correction
that is expected at its severity (cold diffusion). The corrections add up to scan minus counterpart,
so that the anomaly map of the scan is the accumulated correction, as in the papers.

It is written from the papers' idea. It differs from them in

* the anomalies: the pairs of all methods here, lesions carried by a flow, instead of foreign
  patches (DISYRE) or shapes, textures and intensity shifts (v2), so that only the methods are
  compared;
* the severity: uniform and linear in the blend, known in training and given as a constant channel;
  v2 also averages over restorations that assume different severities;
* the network: the U-Net and the loss of `Regression`, on whole volumes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.methods.pairs import by_its_maximum
from fluidjax.methods.regression import Params, Regression


@dataclasses.dataclass(frozen=True)
class SeverityProcess:
    """Restoration of a scan.

    Attributes:
        steps: evaluations of the network, at severities evenly spaced from 1 towards 0.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check(self.steps >= 1, 'restoration.process.steps', self.steps, 'must be 1 or more')


@dataclasses.dataclass(frozen=True)
class SeverityRestoration(Regression):
    """Healthy from any severity; other fields as in `Regression`.

    `network.in_channels` is 2.

    Attributes:
        process: how scans are restored.
    """

    process: SeverityProcess = SeverityProcess()

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of `Regression`, from images of random severities."""
        k_pair, k_severity = jax.random.split(key)
        pair = self.pairs(batch, k_pair, share)
        severity = share.uniform(k_severity, (len(pair.healthy),)).reshape(-1, 1, 1, 1, 1)
        image = pair.healthy + severity * (pair.diseased - pair.healthy)
        return self._compared(self._restore(params, _with(image, severity)), pair, share)

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)`; `key` is not used."""
        del key
        scans, peak = by_its_maximum(volumes)
        severities = jnp.linspace(1.0, 0.0, self.process.steps + 1)

        def step(image: jax.Array, between: tuple) -> tuple[jax.Array, None]:
            now, then = between
            healthy = self._restore(params, _with(image, now))
            return healthy + then / now * (image - healthy), None

        restored = jax.lax.scan(step, scans, (severities[:-1], severities[1:]))[0]
        return peak * jnp.clip(restored, 0.0, 1.0)


def _with(images: jax.Array, severity: jax.Array) -> jax.Array:
    """Images `(batch, x, y, z, 1)` and their severity, a number or one each, as two channels."""
    return jnp.concatenate([images, jnp.broadcast_to(severity, images.shape)], axis=-1)
