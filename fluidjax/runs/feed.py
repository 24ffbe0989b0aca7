"""The batches of a stage from a cohort; each process gets its own part, by number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.training.parallel import Layout

# Number of volumes for data-dependent initial values (principal components, mean latent).
PREPARE_VOLUMES = 64


class Feed:
    """Batches from any number on, with lesion masks if the cohort has a bank of them.

    Args:
        cohort: of `data_pipelines.input_pipeline`.
        layout: how a batch is distributed over the devices.
        seed: of the order of the scans and the choice of masks.
    """

    def __init__(self, cohort: Any, layout: Layout, seed: int) -> None:
        from data_pipelines import input_pipeline

        self._pipeline = input_pipeline
        self._cohort, self.layout, self._seed = cohort, layout, seed
        self._bank = input_pipeline.lesion_bank(cohort)

    def __call__(
        self, start: int, split: str = 'train', shuffled: bool = True
    ) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches of this process `(device, sample, ...)`, from the number `start` on."""
        layout = self.layout
        batches = self._pipeline.batches(
            self._cohort,
            split,
            layout.local_batch,
            self._seed,
            start,
            len(layout.devices),
            layout.process,
            layout.processes,
            shuffled,
        )
        for number, batch in enumerate(batches, start):
            yield batch if self._bank is None else {**batch, 'lesions': self._draw(number, batch)}

    def validation(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches of one pass over the validation scans, always the same.

        Every scan is in one of them. If they do not fill the last batch, the first ones come again.
        """
        count = -(-self._cohort.sizes.get('validation', 0) // self.layout.batch_size)
        return itertools.islice(self(0, 'validation', shuffled=False), count)

    def _draw(self, number: int, batch: dict[str, np.ndarray]) -> np.ndarray:
        """A mask for each image, `(device, sample, x, y, z)` uint8.

        They depend only on the seed and the number of the batch: each process draws the masks of
        the whole batch and takes its own.
        """
        layout = self.layout
        rng = np.random.default_rng((self._seed, number, 0))
        drawn = rng.integers(len(self._bank), size=layout.batch_size)
        own = drawn[layout.process * layout.local_batch :][: layout.local_batch]
        return self._bank[own.reshape(batch['image'].shape[:2])]


def some_volumes(scans: Iterable[Subject]) -> np.ndarray:
    """The first 64 of some training scans `(n, x, y, z, 1)`."""
    return np.stack([scan.image for scan in itertools.islice(scans, PREPARE_VOLUMES)])[..., None]
