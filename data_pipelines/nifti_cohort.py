"""TFDS builder over the user's own scans: a BIDS or plain folder, test scans, a lesion bank.

The config's name carries a hash of the inputs, so a changed file or setting is another cohort and
an unchanged one is used again. `nifti_source` says which case goes to which split. Subjects of the
embedded cohort can stand beside few scans of one's own.
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
    """Attributes: source: the user's part of the cohort; embedded: subjects of the embedded cohort
    that train beside it, and an eighth as many that validate."""

    source: NiftiSource
    embedded: int = 0


def config_for(source: NiftiSource, embedded: int = 0) -> NiftiConfig:
    """The TFDS config of a source: named by its grid, its fingerprint and what is beside it."""
    x, y, z = source.grid.shape
    name = f'{x}x{y}x{z}_{source.grid.spacing[0]:g}mm_{source.fingerprint()}'.replace('.', 'p')
    if embedded:
        made_by = str(template_cohort.TemplateCohort.VERSION).replace('.', 'p')
        name += f'_and_{embedded}_embedded_{made_by}'
    return NiftiConfig(name=name, source=source, embedded=embedded)


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
        config = self.builder_config
        progress = tqdm.tqdm(items, desc=f'preprocessing {split}', file=sys.stderr)
        for number, item in enumerate(progress):
            yield number, record_cache.record_of(item, config.source)
        beside = {'train': config.embedded, 'validation': config.embedded // 8}.get(split, 0)
        if beside:
            for number in tqdm.trange(beside, desc=f'making {split} subjects', file=sys.stderr):
                yield (
                    len(items) + number,
                    template_cohort.make_record(config.source.grid, split, number),
                )
