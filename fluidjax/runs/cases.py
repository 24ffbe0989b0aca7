"""The cases of an evaluation: validation subjects for the thresholds, and named test sets.

Where there are no diseased scans, lesions are simulated in healthy ones as in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.subject import Subject
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs import laws
from fluidjax.runs.cohort import derived_seed, model_grid
from fluidjax.runs.stages import fluid_settings

# For validation with the training's law alone: lesions in each scan, one per case. A threshold
# chosen on only a dozen lesions would depend too much on which ones they are.
TRAINING_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Split:
    """The validation scans of a cohort, by their purpose.

    Attributes:
        validation: healthy scans with simulated lesions, on which recipes and thresholds are
            chosen: one case per scan and law (`laws.MIXTURE`).
        healthy: the same scans without lesions.
        held_out: the other healthy scans, which are not used in training either.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """

    validation: list[Subject]
    healthy: list[Subject]
    held_out: list[Subject]
    bank: np.ndarray | None


def split_validation(
    config: ConfigDict, cohort: Any, keep_half: bool, mixture: bool = True
) -> Split:
    """Simulate lesions in the validation scans.

    Args:
        config: of the run.
        cohort: with the scans.
        keep_half: use only the first half, and keep the second for a test set.
        mixture: lesions of all laws of `laws.MIXTURE`; False: of the training's law alone.
    """
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    healthy = list(input_pipeline.subjects(cohort, 'validation'))
    bank = input_pipeline.lesion_bank(cohort)
    used = healthy[: max(len(healthy) // 2, 1)] if keep_half else healthy
    chosen = laws.MIXTURE if mixture else (laws.TRAINING,) * TRAINING_DRAWS
    grid, settings = model_grid(config), fluid_settings(config)
    seed = derived_seed(config.seed, 'validation lesions')
    validation = laws.with_lesions(chosen, used, grid, settings, seed, bank)
    return Split(validation, used, healthy[len(used) :], bank)


def own_test_set(config: ConfigDict, cohort: Any) -> tuple[str, list[Subject], Split]:
    """The name and the cases of a cohort's test set, and the split for the thresholds.

    Without diseased scans the test set is the second half of the validation scans, with lesions
    simulated as in training, and its name ends in `-simulated`. A single validation scan gives the
    thresholds and the test cases, with a warning.
    """
    from data_pipelines import input_pipeline

    if 'test' in cohort.sizes:
        split = split_validation(config, cohort, keep_half=False)
        return cohort.name, list(input_pipeline.subjects(cohort, 'test')), split
    split = split_validation(config, cohort, keep_half=True)
    if not split.held_out:
        cli.tell(
            f'{cohort.name}: has only one validation scan, so thresholds are chosen and scores '
            'measured on the same scan; the scores are too good: add healthy scans, or patients '
            'with lesion masks (--test_dir)'
        )
    seed = derived_seed(config.seed, 'test lesions')
    cases = with_simulated_lesions(config, split.held_out or split.healthy, seed, split.bank)
    return f'{cohort.name}-simulated', cases, split


def with_simulated_lesions(
    config: ConfigDict, cases: Sequence[Subject], seed: int, bank: np.ndarray | None = None
) -> list[Subject]:
    """Simulate a lesion in each of some healthy cases, as in training.

    Args:
        config: of a run; its fluid settings and grid are used.
        cases: healthy cases.
        seed: of the random draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """
    grid = model_grid(config)
    settings = dataclasses.replace(fluid_settings(config), diseased_probability=1.0)
    randomize = jax.jit(
        lambda key, image, brain, bank: randomize_batch(key, image, brain, grid, settings, bank)
    )
    simulated = []
    for number, case in enumerate(cases):
        key = jax.random.fold_in(jax.random.key(seed), number)
        brain = case.brain[None, ..., None].astype(np.float32)
        pair = randomize(key, case.image[None, ..., None], brain, bank)
        healthy, diseased, mask = (np.asarray(volume)[0, ..., 0] for volume in pair[:3])
        name = f'{case.name}-simulated'
        simulated.append(
            dataclasses.replace(case, image=diseased, healthy=healthy, lesion=mask > 0, name=name)
        )
    return simulated
