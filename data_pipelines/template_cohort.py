"""TFDS builder of the embedded cohort: subjects made from the MNI152 template, nothing to download.

Each subject depends on (seed, split, number) alone. The test split holds diseased copies with their
lesion mask and the healthy image underneath.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_pipelines import grids, lesion_masks, scan_folders, template_lesions, template_subjects
from data_pipelines.records import record

SEED = 20250610
_SPLITS = ('train', 'validation', 'test')


def record_features(shape: tuple[int, int, int]) -> tfds.features.FeaturesDict:
    """The record of one subject, the same for every cohort. Arrays are (x, y, z), zlib-packed."""
    volume = lambda dtype: tfds.features.Tensor(shape=shape, dtype=dtype, encoding='zlib')
    return tfds.features.FeaturesDict(
        {
            'name': tfds.features.Text(),
            'image': volume(np.float32),
            'brain': volume(np.uint8),
            'healthy': volume(np.float32),
            'has_healthy': np.bool_,
            'lesion': volume(np.uint8),
            'has_lesion': np.bool_,
            'affine': tfds.features.Tensor(shape=(4, 4), dtype=np.float64),
        }
    )


@dataclasses.dataclass(kw_only=True)
class TemplateConfig(tfds.core.BuilderConfig):
    """Attributes: grid: the model grid; sizes: subjects of the train, validation and test split;
    lesion_dir: folder of lesion masks in MNI152 space beside them, '' for none."""

    grid: grids.ModelGrid
    sizes: tuple[int, int, int]
    lesion_dir: str = ''


SCALES = {
    name: TemplateConfig(name=name, grid=grids.GRIDS[name], sizes=sizes)
    for name, sizes in (('demo', (96, 12, 24)), ('smoke', (8, 2, 4)), ('paper', (32, 4, 8)))
}


def config_for(scale: str, lesion_dir: str = '') -> TemplateConfig:
    """The TFDS config of a scale; the files of a lesion bank are part of its name."""
    if not lesion_dir:
        return SCALES[scale]
    files = scan_folders.digest(scan_folders.described(lesion_dir, 'lesion_dir'))
    return dataclasses.replace(SCALES[scale], name=f'{scale}_{files}', lesion_dir=lesion_dir)


def make_record(grid: grids.ModelGrid, split: str, number: int, seed: int = SEED) -> dict:
    """Subject `number` of a split; diseased in the test split, healthy in the others."""
    entropy = np.random.SeedSequence([seed, _SPLITS.index(split), number])
    anatomy_rng, scanner_rng, lesion_rng = map(np.random.default_rng, entropy.spawn(3))
    anatomy = template_subjects.random_anatomy(anatomy_rng, grid)
    scanner = template_subjects.random_scanner(scanner_rng, grid)
    clean = template_subjects.clean_image(anatomy, scanner)
    healthy = scanner.acquire(clean, anatomy.brain)
    name = f'{split}-{number:03d}'
    if split != 'test':
        return record(name, healthy, anatomy.brain, grid.affine)
    diseased, mask = template_lesions.add_lesions(lesion_rng, clean, anatomy, scanner.means, grid)
    image = scanner.acquire(diseased, anatomy.brain)
    return record(name, image, anatomy.brain, grid.affine, lesion=mask, healthy=healthy)


class TemplateCohort(tfds.core.GeneratorBasedBuilder):
    """Brains made from the MNI152 template; the test split is diseased."""

    VERSION = tfds.core.Version('1.2.0')  # Raise it when the subjects change.
    BUILDER_CONFIGS = list(SCALES.values())

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Healthy and diseased brains made from the MNI152 template.',
            features=record_features(self.builder_config.grid.shape),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # Nothing to download.
        config = self.builder_config
        splits = {
            s: self._generate_examples(s, n) for s, n in zip(_SPLITS, config.sizes, strict=True)
        }
        if config.lesion_dir:
            splits['lesions'] = lesion_masks.lesion_records(config.lesion_dir, config.grid)
        return splits

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict]]:
        progress = tqdm.tqdm(range(size), desc=f'making {split} subjects', file=sys.stderr)
        for number in progress:
            yield number, make_record(self.builder_config.grid, split, number)
