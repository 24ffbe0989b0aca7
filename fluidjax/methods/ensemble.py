"""Several trained methods, whose healthy counterparts of a scan are taken together.

A latent method keeps to what its code can express, so it is rarely wrong outside a lesion, but
blurred. A regression in image space is sharp, and more easily led astray by scans unlike those of
its training. A head (`fluidjax.methods.head`) that sees the counterparts of both learns where each
is to be believed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fluidjax.methods import Method
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ensemble(Method):
    """Counterparts of several methods; it trains nothing itself.

    Attributes:
        restorers: methods that make counterparts. Their parameter groups have different names,
            except for those that they share, such as the autoencoder.
    """

    restorers: tuple[Method, ...]

    separate = True

    @property
    def autoencoder(self) -> AutoencoderMethod | None:
        """That of the first restorer that has one."""
        return next((one.autoencoder for one in self.restorers if one.autoencoder), None)

    @property
    def pairs(self) -> PairMaker | None:
        """Those of the first restorer."""
        return self.restorers[0].pairs

    @property
    def is_random(self) -> bool:
        """Whether any restorer is."""
        return any(one.is_random for one in self.restorers)

    @property
    def num_counterparts(self) -> int:
        """One of each restorer."""
        return len(self.restorers)

    def init(self, key: jax.Array) -> Params:
        """Random parameters of all restorers."""
        keys = jax.random.split(key, len(self.restorers))
        params: Params = {}
        for one, own in zip(self.restorers, keys, strict=True):
            params |= one.init(own)
        return params

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """The mean of all counterparts of scans `(batch, x, y, z, 1)`, shaped alike."""
        return self.counterparts(params, volumes, key).mean(axis=0)

    def counterparts(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """The counterpart of each restorer, `(n, batch, x, y, z, 1)`."""
        return jnp.stack([one.reconstruct(params, volumes, key) for one in self.restorers])
