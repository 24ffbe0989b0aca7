"""Validation scans of a run whose scans are synthesised: one contrast after another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from data_pipelines.preprocess import BRIGHTEST, BRIGHTEST_INTENSITY, WHITE_MATTER_LEVELS
from fluidjax.base.errors import UserError
from fluidjax.base.subject import TISSUES, Subject
from fluidjax.fluid.grid import Grid
from fluidjax.synthesis.contrasts import CONTRASTS
from fluidjax.synthesis.generate import SynthesisSettings, synthesise


def contrast_of(settings: SynthesisSettings | None, number: int) -> str:
    """The contrast of the scan of a number; `random` only where there is no other."""
    if settings is None:
        return 't1w'
    names = [name for name in settings.contrasts if name != 'random'] or ['random']
    return names[number % len(names)]


def has_bright_lesions(settings: SynthesisSettings | None, number: int) -> bool:
    """Whether lesions of the scan of a number are painted brighter than the tissue."""
    return CONTRASTS[contrast_of(settings, number)].bright > 0.5


def synthesised(
    cases: Iterable[Subject],
    settings: SynthesisSettings,
    grid: Grid,
    seed: int,
    first: int = 0,
    turn: int = 0,
) -> Iterator[Subject]:
    """Healthy cases with an image made from their tissue, each in a contrast by its number.

    Args:
        cases: with tissue fractions.
        settings: of the run.
        grid: of the images.
        seed: of the random draws, another one for each split.
        first: the first case's number among those of its split, for the draws.
        turn: the first case's number for the contrast, `contrast_of`.

    Raises:
        UserError: a case has no tissue fractions.
    """
    for number, case in enumerate(cases):
        if case.tissue is None:
            raise UserError(
                f'{case.name}: has no tissue fractions, from which scans are made; build the '
                'cohort again, --config.cohort.store=ANOTHER'
            )
        name = contrast_of(settings, turn + number)
        made = _maker(dataclasses.replace(settings, contrasts=(name,), cut=0.0), grid)
        key = jax.random.fold_in(jax.random.key(seed), first + number)
        image = np.asarray(made(key, case.tissue, case.brain.astype(np.float32)))
        image = at_level_of_scans(image, case, name)
        blank = np.zeros(case.brain.shape, bool)
        lesion = None if case.lesion is None else blank
        yield dataclasses.replace(
            case, name=f'{case.name}-{name}', image=image, lesion=lesion, healthy=None
        )


@functools.lru_cache(maxsize=8)
def _maker(settings: SynthesisSettings, grid: Grid) -> Callable:
    """The compiled function of a key, tissue fractions and brain: an image `(x, y, z)`."""
    return jax.jit(lambda key, *maps: synthesise(key, *maps, grid.spacing, settings)[0])


def at_level_of_scans(image: np.ndarray, case: Subject, contrast: str) -> np.ndarray:
    """A synthesised image `(x, y, z)` on the scale that preprocessing gives to real scans.

    Thresholds that are chosen on it would be in another unit than the maps of real scans.
    """
    inside = case.brain > 0
    white = case.tissue[..., TISSUES.index('white')]
    pure = inside & (white >= np.quantile(white[inside], 0.75))
    known_as = 't1w' if contrast == 't1ce' else contrast
    if known_as in WHITE_MATTER_LEVELS:
        gain = WHITE_MATTER_LEVELS[known_as] / max(float(np.median(image[pure])), 1e-3)
    else:
        gain = BRIGHTEST_INTENSITY / max(float(np.percentile(image[inside], BRIGHTEST)), 1e-3)
    return np.clip(gain * image, 0.0, 1.0).astype(np.float32)
