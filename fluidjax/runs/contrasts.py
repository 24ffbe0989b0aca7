"""Validation scans of a run whose scans are synthesised: one contrast after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.subject import Subject
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
    cases: Iterable[Subject], settings: SynthesisSettings, grid: Grid, seed: int
) -> Iterator[Subject]:
    """Healthy cases with an image made from their tissue, each in a contrast by its number.

    Args:
        cases: with tissue fractions.
        settings: of the run.
        grid: of the images.
        seed: of the random draws.

    Raises:
        UserError: a case has no tissue fractions.
    """
    made = {}
    for number, case in enumerate(cases):
        if case.tissue is None:
            raise UserError(
                f'{case.name}: has no tissue fractions, from which scans are made; build the '
                'cohort again, --config.cohort.store=ANOTHER'
            )
        name = contrast_of(settings, number)
        if name not in made:
            own = dataclasses.replace(settings, contrasts=(name,), cut=0.0)
            made[name] = jax.jit(
                lambda key, tissue, brain, own=own: synthesise(
                    key, tissue, brain, grid.spacing, own
                )[0]
            )
        # Not a key of `laws.lesions_by`, which has the same seed.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), 5)
        image = np.asarray(made[name](key, case.tissue, case.brain.astype(np.float32)))
        blank = np.zeros(case.brain.shape, bool)
        lesion = None if case.lesion is None else blank
        yield dataclasses.replace(
            case, name=f'{case.name}-{name}', image=image, lesion=lesion, healthy=None
        )
