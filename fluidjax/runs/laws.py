"""The lesions on which thresholds and recipes are chosen: a mixture of laws, not that of training.

A threshold chosen on the lesions of training alone fits those: on lesions of another kind it marks
too little. So every healthy validation scan gets one lesion of each law below. None is the law of
the embedded cohort's test lesions (`data_pipelines/template_lesions.py`). For each lesion the scan
is deformed and recoloured anew (`VARIETY`), because brains of other people differ more from those
of training than the validation scans do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.fluid.draws import draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized, randomize_drawn
from fluidjax.fluid.settings import FluidSettings
from fluidjax.methods.augment import AugmentSettings, augment_batch
from fluidjax.methods.variants import VariantSettings, vary

Painter = Callable[[Subject, int, int], Subject]
MOST_LESIONS = 3
VARIETY = AugmentSettings(
    flip_probability=0.5,
    rotation_degrees=4.0,
    scaling=0.05,
    shear=0.03,
    displacement_mm=4.0,
    control_spacing_mm=32.0,
    gamma=0.2,
    bias=0.15,
    noise=0.02,
)
TEXTURE_MM = 10.0


@dataclasses.dataclass(frozen=True)
class Law:
    """How the lesions of a law differ from those of training.

    Attributes:
        name: in words.
        changes: fields of `FluidSettings` that only the random numbers depend on.
        count: least and greatest number of lesions in a scan; None as in training.
        smooth: whether the texture is smooth over `TEXTURE_MM`.
    """

    name: str
    changes: Mapping[str, Any]
    count: tuple[int, int] | None = None
    smooth: bool = False


TRAINING = Law('as in training', {})
MIXTURE = (
    TRAINING,
    Law('faint', {'strength': (0.3, 0.6)}),
    Law('bright', {'strength': (0.3, 0.8), 'bright_probability': 1.0}),
    Law('small', {'size_ml': (0.5, 5.0), 'strength': (0.5, 1.0)}),
    Law('several', {'size_ml': (2.0, 15.0), 'strength': (0.5, 1.0)}, (2, 3)),
    Law('large', {'size_ml': (30.0, 100.0), 'strength': (0.4, 1.0)}, (1, 1)),
    Law(
        'smooth, not carried by a flow',
        {'transport_time': (0.0, 0.0), 'size_ml': (3.0, 50.0), 'strength': (0.4, 1.0)},
        (1, 1),
        smooth=True,
    ),
)


def lesions_by(
    laws: Sequence[Law],
    grid: Grid,
    settings: FluidSettings,
    seed: int,
    bank: np.ndarray | None = None,
    variety: AugmentSettings | None = VARIETY,
    variants: VariantSettings | None = None,
    bright: Callable[[int], bool] = lambda number: False,
) -> Painter:
    """A function of a healthy case, its number and that of a law: the case with such a lesion.

    Args:
        laws: see `Law`.
        grid: the model's.
        settings: of the training's lesions.
        seed: of the random draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
        variety: how scans are deformed and recoloured before; None: not at all.
        variants: how they are varied before that, see `methods.variants`; None: not at all.
        bright: whether the lesions of the case of a number are brighter where those in T1w are
            darker, and darker where they are brighter.
    """
    painters = {
        smooth: _painter(grid, _shared(settings, smooth), variety, variants)
        for smooth in {law.smooth for law in laws}
    }
    masks, held = (0, None) if bank is None else (len(bank), jnp.asarray(bank))

    def paint(case: Subject, number: int, place: int) -> Subject:
        law = laws[place]
        key = jax.random.fold_in(jax.random.key(seed), number * len(laws) + place)
        draw = _drawn(key, law, settings, masks, bright(number))
        pair, brain = painters[law.smooth](key, draw, case.image, case.brain, held)
        made = with_pair(case, pair, np.asarray(brain) > 0)
        return dataclasses.replace(made, name=f'{case.name}-{law.name}')

    return paint


def varied_by(
    variants: VariantSettings, grid: Grid, seed: int
) -> Callable[[Subject, int], Subject]:
    """A function of a healthy case and its number: the case varied, without a lesion."""
    vary_one = jax.jit(lambda key, image, brain: vary(key, image, brain, grid.spacing, variants))

    def made(case: Subject, number: int) -> Subject:
        # Not a key of `lesions_by`, which has the same seed.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), 4)
        image, brain = vary_one(key, case.image, case.brain.astype(np.float32))
        return at_level_of(case, np.asarray(image), np.asarray(brain) > 0)

    return made


def at_level_of(case: Subject, image: np.ndarray, brain: np.ndarray) -> Subject:
    """A case with a changed image and brain, at the level of white matter that it has."""
    gain = _white(case.image, case.brain.astype(bool)) / _white(image, brain)
    image = np.clip(gain * image, 0.0, 1.0).astype(np.float32)
    return dataclasses.replace(case, image=image, brain=brain)


def in_turns(paint: Painter, count: int, cases: Iterable[Subject]) -> Iterator[Subject]:
    """Each healthy case with a lesion by each law, so that the first few differ in both.

    Args:
        paint: of `lesions_by`.
        count: number of its laws.
        cases: healthy cases; they are read `count` times.
    """
    for turn in range(count):
        for number, case in enumerate(cases):
            yield paint(case, number, (number + turn) % count)


def with_pair(case: Subject, pair: Randomized, brain: np.ndarray) -> Subject:
    """A case with the images of a pair, at the level of white matter that its own image has.

    Images of a pair are divided by their maxima, the diseased one by that of a bright lesion, and a
    recoloured scan has a level of its own; scans of a cohort have all been brought to one level.

    Args:
        case: what the pair was made of.
        pair: each `(x, y, z)`.
        brain: boolean, in which the pair lies.
    """
    healthy, diseased, mask = (np.asarray(volume) for volume in pair[:3])
    lesion = mask > 0
    without = at_level_of(case, healthy, brain)
    kept = brain & ~lesion & (without.image > 0.1) & (without.image < 1.0) & (diseased > 0.1)
    gain = np.median(without.image[kept] / diseased[kept]) if kept.any() else 1.0
    image = np.clip(gain * diseased, 0.0, 1.0).astype(np.float32)
    return dataclasses.replace(without, healthy=without.image, image=image, lesion=lesion)


def _white(image: np.ndarray, brain: np.ndarray) -> float:
    """The upper quartile in the brain, which lies in white matter."""
    return max(float(np.percentile(image[brain], 75.0)), 1e-3)


def _shared(settings: FluidSettings, smooth: bool) -> FluidSettings:
    """What a law cannot change, because a program is compiled for it.

    The painting `una_equation` is `una` here, as its brightness cannot be chosen.
    """
    texture = TEXTURE_MM if smooth else settings.texture_mm
    most = max(MOST_LESIONS, settings.lesion_count[1])
    return dataclasses.replace(
        _choosable(settings), diseased_probability=1.0, lesion_count=(1, most), texture_mm=texture
    )


def brightened(settings: FluidSettings) -> FluidSettings:
    """Lesions brighter where they were darker, and the other way round."""
    bright = 1.0 - settings.bright_probability
    return dataclasses.replace(_choosable(settings), bright_probability=bright)


def _choosable(settings: FluidSettings) -> FluidSettings:
    """Settings with a painting whose brightness can be chosen."""
    if settings.painting != 'una_equation':
        return settings
    return dataclasses.replace(settings, painting='una')


def _drawn(key: jax.Array, law: Law, settings: FluidSettings, masks: int, bright: bool) -> Any:
    """The random numbers of a lesion of a law."""
    own = dataclasses.replace(_shared(settings, law.smooth), **law.changes)
    own = brightened(own) if bright else own
    least, most = settings.lesion_count if law.count is None else law.count
    k_draw, k_count = jax.random.split(key)
    count = jax.random.randint(k_count, (), least, most + 1)
    return draw_pair(k_draw, own, masks)._replace(count=count)


@functools.lru_cache(maxsize=8)
def _painter(
    grid: Grid,
    settings: FluidSettings,
    variety: AugmentSettings | None,
    variants: VariantSettings | None,
) -> Any:
    """A compiled function of a draw, a scan and a bank: the pair, and the brain that it lies in."""

    def paint(
        key: jax.Array, draw: Any, image: jax.Array, brain: jax.Array, bank: jax.Array | None
    ) -> Any:
        brain = brain.astype(jnp.float32)
        if variants is not None:  # first: it finds the ventricles in MNI152 space
            own = jax.random.fold_in(key, 2)
            image, brain = vary(own, image, brain, grid.spacing, variants)
        if variety is not None:
            keys = jax.random.fold_in(key, 3)[None]  # not 0 or 1: `_drawn` splits the key in two
            volumes = (volume[None, ..., None] for volume in (image, brain))
            images, brains = augment_batch(keys, *volumes, grid.spacing, variety)
            image, brain = images[0, ..., 0], brains[0, ..., 0]
        return randomize_drawn(draw, image, brain, grid, settings, bank), brain

    return jax.jit(paint)
