"""The cases of an evaluation: validation subjects for the thresholds, and named test sets.

Where there are no diseased scans, lesions are simulated in healthy ones as in training. Cases are
read and simulated when a loop reaches them, so that any number of them fits into memory.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.settings import check
from fluidjax.base.subject import Subject
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs import laws
from fluidjax.runs.cohort import derived_seed, model_grid, trained_contrasts
from fluidjax.runs.contrasts import has_bright_lesions, synthesised
from fluidjax.runs.stages import fluid_settings, synthesis_settings, variant_settings

# For validation with the training's law alone: lesions in each scan, one per case. A threshold
# chosen on only a dozen lesions would depend too much on which ones they are.
TRAINING_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Cases:
    """Cases that are read or simulated when a loop reaches them; every loop starts anew.

    Attributes:
        made: called by each loop; it gives the cases one after another.
    """

    made: Callable[[], Iterator[Subject]]

    def __iter__(self) -> Iterator[Subject]:
        return self.made()


def scans_of(cohort: Any, split: str, start: int = 0, stop: int | None = None) -> Cases:
    """The scans of a split of a cohort, from one number to another."""
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    return Cases(lambda: itertools.islice(input_pipeline.subjects(cohort, split), start, stop))


def healthy_of(
    config: ConfigDict,
    cohort: Any,
    split: str,
    start: int = 0,
    stop: int | None = None,
    turn: int = 0,
) -> Cases:
    """The healthy scans of a split as the run of a configuration sees them.

    They are those of `scans_of`, or are synthesised from their tissue, the contrasts in turns that
    begin with the number `turn`.
    """
    scans, settings = scans_of(cohort, split, start, stop), synthesis_settings(config)
    if settings is None:
        return scans
    grid, seed = model_grid(config), derived_seed(config.seed, f'scans of {split}')
    return Cases(lambda: synthesised(scans, settings, grid, seed, start, turn))


def batches(cases: Iterable[Subject], size: int) -> Iterator[list[Subject]]:
    """The cases in lists of a size, the last of which may be shorter."""
    left = iter(cases)
    while batch := list(itertools.islice(left, size)):
        yield batch


@dataclasses.dataclass(frozen=True)
class Split:
    """The validation scans of a cohort, by their purpose.

    Attributes:
        validation: healthy scans with simulated lesions, on which recipes and thresholds are
            chosen: one case per scan and law (`laws.MIXTURE`).
        healthy: the same scans without lesions; varied where training varies its scans.
        held_out: the healthy scans kept for a test set; None where none are. Training's own
            validation loss, by which it may stop early, is of all validation scans.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """

    validation: Iterable[Subject]
    healthy: Iterable[Subject]
    held_out: Iterable[Subject] | None
    bank: np.ndarray | None


def split_validation(
    config: ConfigDict, cohort: Any, keep_half: bool, mixture: bool = True
) -> Split:
    """Simulate lesions in the validation scans.

    Args:
        config: of the run. With `detect.validation_scans` only that many scans are used.
        cohort: with the scans.
        keep_half: use only the first half of the user's scans (and all of the embedded subjects),
            and keep the second for a test set.
        mixture: lesions of all laws of `laws.MIXTURE` in deformed and recoloured scans; False: of
            the training's law alone, in the scans as they are.

    Raises:
        UserError: `detect.validation_scans` is negative.
    """
    from data_pipelines import input_pipeline

    most = config.detect.get('validation_scans', 0)  # older runs do not have the field
    check(most >= 0, 'detect.validation_scans', most, 'must be 0 (all scans) or more')
    count = cohort.sizes.get('validation', 0)
    own = max(count - config.cohort.get('embedded', 0) // 8, 1)  # embedded subjects come after them
    half = max(own // 2, 1) if keep_half else own
    some = functools.partial(healthy_of, config, cohort, 'validation')
    # Lesions are as bright as the contrast of a scan's number among those of all parts.
    parts = [some(stop=half)] + ([some(start=own, turn=half)] if own < count else [])
    healthy = Cases(lambda: itertools.islice(itertools.chain(*parts), most or None))
    held_out = some(start=half, stop=own) if half < own else None
    bank = input_pipeline.lesion_bank(cohort)
    chosen = laws.MIXTURE if mixture else (laws.TRAINING,) * TRAINING_DRAWS
    seed = derived_seed(config.seed, 'validation lesions')
    grid, varied = model_grid(config), healthy
    variety, variants = (laws.VARIETY, variant_settings(config)) if mixture else (None, None)
    synthesis = synthesis_settings(config)
    if variants is not None and synthesis is not None:  # these two take CSF for dark
        variants = dataclasses.replace(variants, ventricle_mm=0.0, sulci_mm=0.0)
    bright = functools.partial(has_bright_lesions, synthesis)
    paint = laws.lesions_by(
        chosen, grid, fluid_settings(config), seed, bank, variety, variants, bright
    )
    if variants is not None:
        vary = laws.varied_by(variants, grid, seed)
        varied = Cases(lambda: (vary(case, number) for number, case in enumerate(healthy)))
    validation = Cases(lambda: laws.in_turns(paint, len(chosen), healthy))
    return Split(validation, varied, held_out, bank)


def own_test_set(config: ConfigDict, cohort: Any) -> tuple[str, Cases, Split]:
    """The name and the cases of a cohort's test set, and the split for the thresholds.

    Without diseased scans the test set is the second half of the validation scans, with lesions
    simulated as in training, and its name ends in `-simulated`. A single validation scan gives the
    thresholds and the test cases, with a warning. The test subjects of the embedded cohort are
    T1w; for a run of other contrasts they are synthesised, with lesions simulated as in training.
    """
    seed = derived_seed(config.seed, 'test lesions')
    if 'test' in cohort.sizes:
        split = split_validation(config, cohort, keep_half=False)
        given = trained_contrasts(config) == ('t1w',) or not cohort.name.startswith('template_')
        if given:
            return cohort.name, scans_of(cohort, 'test'), split
        brains = healthy_of(config, cohort, 'test')
        cases = with_simulated_lesions(config, brains, seed, split.bank)
        return f'{cohort.name}-simulated', cases, split
    split = split_validation(config, cohort, keep_half=True)
    if split.held_out is None:
        cli.tell(
            f'{cohort.name}: has only one validation scan, so thresholds are chosen and scores '
            'measured on the same scan; the scores are too good: add healthy scans, or patients '
            'with lesion masks (--test_dir)'
        )
    cases = with_simulated_lesions(config, split.held_out or split.healthy, seed, split.bank)
    return f'{cohort.name}-simulated', cases, split


def with_simulated_lesions(
    config: ConfigDict,
    cases: Iterable[Subject],
    seed: int,
    bank: np.ndarray | None = None,
    draws: int = 1,
) -> Cases:
    """Simulate a lesion in each of some healthy cases, as in training.

    The scans keep the level of white matter that they have.

    Args:
        config: of a run; its fluid settings and grid are used.
        cases: healthy cases; they are read anew by every loop over the result.
        seed: of the random draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
        draws: cases for each healthy one.
    """
    grid = model_grid(config)
    settings = dataclasses.replace(fluid_settings(config), diseased_probability=1.0)
    synthesis = synthesis_settings(config)

    @functools.partial(jax.jit, static_argnums=4)
    def randomize(key: Any, image: Any, brain: Any, bank: Any, bright: bool) -> Any:
        own = laws.brightened(settings) if bright else settings
        return randomize_batch(key, image, brain, grid, own, bank)

    def simulated(number: int, case: Subject, draw: int) -> Subject:
        key = jax.random.fold_in(jax.random.key(seed), draws * number + draw)
        brain = case.brain[None, ..., None].astype(np.float32)
        bright = has_bright_lesions(synthesis, number)
        pair = randomize(key, case.image[None, ..., None], brain, bank, bright)
        pair = jax.tree.map(lambda volume: volume[0, ..., 0], pair)
        made = laws.with_pair(case, pair, case.brain.astype(bool))
        name = f'{case.name}-simulated' + (f'-{draw}' if draws > 1 else '')
        return dataclasses.replace(made, name=name)

    return Cases(
        lambda: (
            simulated(number, case, draw)
            for number, case in enumerate(cases)
            for draw in range(draws)
        )
    )
