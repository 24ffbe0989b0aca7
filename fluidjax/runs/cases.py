"""What a run is judged on: validation subjects for the thresholds, and named sets of test cases.

Lesions are simulated in healthy scans where nobody gives diseased ones, by the training's own law.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base.subject import Subject
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs.cohort import derived_seed, model_grid
from fluidjax.runs.stages import fluid_settings

# Lesions a validation scan is shown with, one at a time: a threshold chosen on a dozen lesions
# depends on which they are.
VALIDATION_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Split:
    """Cases of a cohort by their purpose.

    Attributes:
        validation: healthy scans with simulated lesions, `VALIDATION_DRAWS` of each, on which
            thresholds are chosen.
        held_out: the other healthy scans that training never saw.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """

    validation: list[Subject]
    held_out: list[Subject]
    bank: np.ndarray | None


def split_validation(config: ConfigDict, cohort: Any, keep_half: bool) -> Split:
    """The validation scans: all of them with simulated lesions, or the first half.

    Args:
        keep_half: leave the second half healthy, for a test set.
    """
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    healthy = list(input_pipeline.subjects(cohort, 'validation'))
    bank = input_pipeline.lesion_bank(cohort)
    half = max(len(healthy) // 2, 1) if keep_half else len(healthy)
    seed = derived_seed(config.seed, 'validation lesions')
    validation = with_simulated_lesions(config, healthy[:half] * VALIDATION_DRAWS, seed, bank)
    return Split(validation, healthy[half:] if len(healthy) > 1 else healthy, bank)


def own_test_set(config: ConfigDict, cohort: Any) -> tuple[str, list[Subject], Split]:
    """A cohort's test set with its name, and the split its thresholds come from.

    Where nobody gave diseased scans it is the second half of the validation scans with lesions
    simulated by the training's law, and its name ends in `-simulated`.
    """
    from data_pipelines import input_pipeline

    if 'test' in cohort.sizes:
        split = split_validation(config, cohort, keep_half=False)
        return cohort.name, list(input_pipeline.subjects(cohort, 'test')), split
    split = split_validation(config, cohort, keep_half=True)
    seed = derived_seed(config.seed, 'test lesions')
    cases = with_simulated_lesions(config, split.held_out, seed, split.bank)
    return f'{cohort.name}-simulated', cases, split


def with_simulated_lesions(
    config: ConfigDict, cases: Sequence[Subject], seed: int, bank: np.ndarray | None = None
) -> list[Subject]:
    """Healthy cases with a lesion each, drawn by the training's law from a seed of its own.

    Args:
        config: of a run; its fluid settings and grid are used.
        cases: healthy cases.
        seed: of the draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """
    grid = model_grid(config)
    settings = dataclasses.replace(fluid_settings(config), diseased_probability=1.0)
    randomize = jax.jit(
        lambda key, image, brain, bank: randomize_batch(key, image, brain, grid, settings, bank)
    )
    made = []
    for number, case in enumerate(cases):
        key = jax.random.fold_in(jax.random.key(seed), number)
        pair = randomize(
            key, case.image[None, ..., None], case.brain[None, ..., None].astype(np.float32), bank
        )
        healthy, diseased, mask = (np.asarray(v)[0, ..., 0] for v in pair[:3])
        made.append(
            dataclasses.replace(
                case,
                image=diseased,
                healthy=healthy,
                lesion=mask > 0,
                name=f'{case.name}-simulated',
            )
        )
    return made
