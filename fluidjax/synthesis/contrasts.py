"""Intensities of the tissues in the contrasts of brain MRI, and how lesions look in them.

Means are in units of that of white matter. The ranges were written down from the physics of the
sequences (CSF is nulled in FLAIR, bright in T2w) and are wide, so that scanners and protocols lie
within them; they were fitted to no scan. `random` has no such order, as in SynthSeg
(arXiv:2107.09559), where every tissue has any intensity.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.subject import TISSUES

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The law of a contrast.

    Attributes:
        csf, grey, deep_grey, cerebellar_grey, stem: least and greatest mean of a tissue in units of
            that of white matter; `stem` is white matter of cerebellum and brain stem.
        bright: probability that a lesion is brighter than the tissue around it.
        enhancing: probability that the rim of a lesion is bright, after contrast agent.
    """

    csf: Range
    grey: Range
    deep_grey: Range
    cerebellar_grey: Range
    stem: Range
    bright: float
    enhancing: float = 0.0

    @property
    def ranges(self) -> np.ndarray:
        """Least and greatest mean of each of `TISSUES`: `(2, tissues)`."""
        by_tissue = {**dataclasses.asdict(self), 'white': (1.0, 1.0)}
        return np.array([by_tissue[tissue] for tissue in TISSUES], np.float32).T


CONTRASTS = {
    't1w': Contrast((0.15, 0.45), (0.6, 0.85), (0.7, 0.95), (0.6, 0.85), (0.85, 1.05), 0.0),
    't2w': Contrast((1.8, 3.5), (1.2, 1.7), (0.85, 1.4), (1.2, 1.7), (0.95, 1.25), 1.0),
    'flair': Contrast((0.05, 0.45), (1.05, 1.6), (0.95, 1.4), (1.0, 1.5), (0.9, 1.15), 1.0),
    't1ce': Contrast((0.15, 0.45), (0.6, 0.9), (0.7, 0.95), (0.6, 0.9), (0.85, 1.05), 0.0, 0.5),
    'random': Contrast((0.1, 3.0), (0.1, 3.0), (0.1, 3.0), (0.1, 3.0), (0.5, 1.5), 0.5),
}


class Drawn(NamedTuple):
    """The contrast of a scan; scalars, but for `means`.

    means: of each of `TISSUES`, `(tissues,)`; the greatest is below 1.
    bright: probability that a lesion is brighter than the tissue around it.
    enhancing: probability that its rim is bright.
    """

    means: jax.Array
    bright: jax.Array
    enhancing: jax.Array

    @property
    def white(self) -> jax.Array:
        """Mean of white matter."""
        return self.means[..., TISSUES.index('white')]

    @property
    def fluid(self) -> jax.Array:
        """Mean of CSF."""
        return self.means[..., TISSUES.index('csf')]


def draw_contrast(key: jax.Array, names: tuple[str, ...], brightest: Range = (0.6, 0.9)) -> Drawn:
    """A random scan's contrast.

    Args:
        key: random key.
        names: of `CONTRASTS`, one of which is chosen.
        brightest: least and greatest mean of the brightest tissue.
    """
    k_kind, k_means, k_level = jax.random.split(key, 3)
    laws = [CONTRASTS[name] for name in names]
    kind = jax.random.randint(k_kind, (), 0, len(laws))
    low, high = jnp.asarray(np.stack([law.ranges for law in laws]))[kind]
    means = low + (high - low) * jax.random.uniform(k_means, (len(TISSUES),))
    level = jax.random.uniform(k_level, minval=brightest[0], maxval=brightest[1])
    value = lambda name: jnp.array([getattr(law, name) for law in laws], jnp.float32)[kind]
    return Drawn(level * means / means.max(), value('bright'), value('enhancing'))
