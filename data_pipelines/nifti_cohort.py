"""TFDS builder for the user's own scans: a BIDS or plain folder, test scans, a lesion bank.

The name of its config contains a hash of the inputs, so that a changed file or setting gives
another cohort. `nifti_source` assigns the cases to splits. Subjects of the embedded cohort can be
added to a few scans of one's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import records, template_cohort
from data_pipelines.nifti_source import NiftiSource, all_items, unused_files
from data_pipelines.scan_folders import counted


@dataclasses.dataclass(kw_only=True)
class NiftiConfig(tfds.core.BuilderConfig):
    """A cohort of the user's own scans.

    Attributes:
      source: the user's scans.
      embedded: number of subjects of the embedded cohort that are added to the training split; an
        eighth as many are added to the validation split.
      tissue: whether the records contain tissue fractions.
    """

    source: NiftiSource
    embedded: int = 0
    tissue: bool = False


def config_for(source: NiftiSource, embedded: int = 0, tissue: bool = False) -> NiftiConfig:
    """The TFDS config of a source, named after its grid, its fingerprint and `embedded`."""
    x, y, z = source.grid.shape
    name = f'{x}x{y}x{z}_{source.grid.spacing[0]:g}mm_{source.fingerprint()}'.replace('.', 'p')
    if embedded:
        version = str(template_cohort.TemplateCohort.VERSION).replace('.', 'p')
        name += f'_and_{embedded}_embedded_{version}'
    if tissue:
        name += '_tissue'
    return NiftiConfig(name=name, source=source, embedded=embedded, tissue=tissue)


class NiftiCohort(tfds.core.GeneratorBasedBuilder):
    """The user's scans on the model grid; its config is made by `config_for`."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Scans from NIfTI files, on the model grid.',
            features=template_cohort.record_features(
                self.builder_config.source.grid.shape, self.builder_config.tissue
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # there is nothing to download
        source = self.builder_config.source
        items = all_items(source)
        if not source.records:  # `prepare` has said it
            for line in counted(*unused_files(source)):
                tqdm.tqdm.write(line, file=sys.stderr)
        return {split: self._generate_examples(split, chosen) for split, chosen in items.items()}

    def _generate_examples(self, split: str, items: list) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        source, embedded, wanted = config.source, config.embedded, config.tissue
        progress = tqdm.tqdm(items, desc=f'preprocessing {split}', file=sys.stderr)
        own = (
            records.with_tissue(records.record_of(item, source, split), wanted, source.grid)
            for item in progress
        )
        added = {'train': embedded, 'validation': embedded // 8}.get(split, 0)
        others = template_cohort.make_records(source.grid, split, added, tissue=wanted)
        yield from enumerate(itertools.chain(own, others))
