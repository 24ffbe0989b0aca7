"""TFDS builder over the user's own scans: a BIDS or plain folder, test scans, a lesion bank.

The config's name carries a hash of the inputs, so a changed file or setting is another cohort and
an unchanged one is used again. `nifti_source` says which case goes to which split.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import record_cache, template_cohort
from data_pipelines.nifti_source import NiftiSource, all_items


@dataclasses.dataclass(kw_only=True)
class NiftiConfig(tfds.core.BuilderConfig):
    """Attributes: source: what the cohort is made of."""

    source: NiftiSource


def config_for(source: NiftiSource) -> NiftiConfig:
    """The TFDS config of a source: named by its grid and its fingerprint."""
    x, y, z = source.grid.shape
    name = f'{x}x{y}x{z}_{source.grid.spacing[0]:g}mm_{source.fingerprint()}'.replace('.', 'p')
    return NiftiConfig(name=name, source=source)


class NiftiCohort(tfds.core.GeneratorBasedBuilder):
    """The user's scans on the model grid. Give it a `config_for(source)`."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Scans from NIfTI files, on the model grid.',
            features=template_cohort.record_features(self.builder_config.source.grid.shape),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # Nothing to download.
        items = all_items(self.builder_config.source)
        return {split: self._generate_examples(split, chosen) for split, chosen in items.items()}

    def _generate_examples(self, split: str, items: list) -> Iterator[tuple[int, dict]]:
        progress = tqdm.tqdm(items, desc=f'preprocessing {split}', file=sys.stderr)
        for number, item in enumerate(progress):
            yield number, record_cache.record_of(item, self.builder_config.source)
