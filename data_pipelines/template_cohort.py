"""TFDS builder of the embedded cohort: subjects made from the MNI152 template, without download.

Each subject depends only on (seed, split, number). The subjects of the test split have lesions; the
record also contains the lesion mask and the healthy image.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import joblib
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_pipelines import (
    grids,
    mni_template,
    records,
    scan_folders,
    template_lesions,
    template_subjects,
)
from data_pipelines.tissue import of_maps
from fluidjax.base.subject import TISSUES

SEED = 20250610
MOST_THREADS = 8  # one subject of the paper's size needs about 0.5 GB
_SPLITS = ('train', 'validation', 'test')


def record_features(
    shape: tuple[int, int, int], tissue: bool = False
) -> tfds.features.FeaturesDict:
    """The record of a subject, the same for all cohorts. Arrays are (x, y, z), packed with zlib.

    Args:
      shape: of the model grid.
      tissue: whether records contain tissue fractions, see `tissue`.
    """
    volume = lambda dtype: tfds.features.Tensor(shape=shape, dtype=dtype, encoding='zlib')
    fractions = tfds.features.Tensor(shape=(*shape, len(TISSUES)), dtype=np.uint8, encoding='zlib')
    more = {'tissue': fractions} if tissue else {}
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
            **more,
        }
    )


@dataclasses.dataclass(kw_only=True)
class TemplateConfig(tfds.core.BuilderConfig):
    """A scale of the embedded cohort.

    Attributes:
      grid: the model grid.
      sizes: number of subjects of the train, validation and test split.
      lesion_dir: folder of lesion masks in MNI152 space that are added as a bank; '' for none.
      tissue: whether the records contain tissue fractions.
    """

    grid: grids.ModelGrid
    sizes: tuple[int, int, int]
    lesion_dir: str = ''
    tissue: bool = False


SCALES = {
    name: TemplateConfig(name=name, grid=grids.GRIDS[name], sizes=sizes)
    for name, sizes in (
        ('demo', (96, 12, 24)),
        ('smoke', (8, 2, 4)),
        ('2mm', (96, 12, 24)),
        ('1.5mm', (64, 8, 16)),
        ('1mm', (32, 4, 8)),
        ('paper', (32, 4, 8)),
    )
}


def config_for(scale: str, lesion_dir: str = '', tissue: bool = False) -> TemplateConfig:
    """The TFDS config of a scale; its name contains a hash of the files of the lesion bank."""
    config = SCALES[scale]
    if tissue:
        config = dataclasses.replace(config, name=f'{config.name}_tissue', tissue=True)
    if not lesion_dir:
        return config
    files = scan_folders.digest(scan_folders.described(lesion_dir, 'lesion_dir'))
    return dataclasses.replace(config, name=f'{config.name}_{files}', lesion_dir=lesion_dir)


def make_record(
    grid: grids.ModelGrid, split: str, number: int, seed: int = SEED, tissue: bool = False
) -> dict:
    """Subject `number` of a split; with lesions in the test split, healthy in the others.

    With `tissue` the record contains the fractions of the healthy subject.
    """
    entropy = np.random.SeedSequence([seed, _SPLITS.index(split), number])
    anatomy_rng, scanner_rng, lesion_rng = map(np.random.default_rng, entropy.spawn(3))
    anatomy = template_subjects.random_anatomy(anatomy_rng, grid)
    scanner = template_subjects.random_scanner(scanner_rng, grid)
    clean = template_subjects.clean_image(anatomy, scanner)
    healthy = scanner.acquire(clean, anatomy.brain)
    name, fractions = f'{split}-{number:03d}', None
    if tissue:
        fractions = of_maps(anatomy.csf, anatomy.gm, anatomy.wm, anatomy.brain)
    if split != 'test':
        return records.record(name, healthy, anatomy.brain, grid.affine, tissue=fractions)
    diseased, mask = template_lesions.add_lesions(lesion_rng, clean, anatomy, scanner.means, grid)
    image = scanner.acquire(diseased, anatomy.brain)
    return records.record(
        name, image, anatomy.brain, grid.affine, lesion=mask, healthy=healthy, tissue=fractions
    )


def make_records(
    grid: grids.ModelGrid,
    split: str,
    count: int,
    threads: int | None = None,
    first: int = 0,
    tissue: bool = False,
) -> Iterator[dict]:
    """Subjects of a split, in order, with a progress bar.

    They are computed on several threads (SciPy releases the interpreter lock). The records do not
    depend on their number, as each subject has its own random numbers.

    Args:
      grid: the model grid.
      split: 'train', 'validation' or 'test'.
      count: number of subjects.
      threads: by default one for each CPU, at most `MOST_THREADS`.
      first: number of the first subject; the cohort has those from 0 on.
      tissue: whether the records contain tissue fractions.
    """
    if not count:
        return
    mni_template.load_template(grid.spacing[0])  # once, before the threads need it
    parallel = joblib.Parallel(
        threads or min(joblib.cpu_count(), MOST_THREADS), backend='threading', return_as='generator'
    )
    numbers = range(first, first + count)
    subjects = parallel(
        joblib.delayed(make_record)(grid, split, number, tissue=tissue) for number in numbers
    )
    yield from tqdm.tqdm(subjects, desc=f'making {split} subjects', total=count, file=sys.stderr)


class TemplateCohort(tfds.core.GeneratorBasedBuilder):
    """Brains made from the MNI152 template, with lesions in the test split."""

    VERSION = tfds.core.Version('1.2.0')  # increase it when the subjects change
    BUILDER_CONFIGS = list(SCALES.values())

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Healthy and diseased brains made from the MNI152 template.',
            features=record_features(self.builder_config.grid.shape, self.builder_config.tissue),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # there is nothing to download
        config = self.builder_config
        splits = {
            s: self._generate_examples(s, n) for s, n in zip(_SPLITS, config.sizes, strict=True)
        }
        if config.lesion_dir:
            made = records.lesion_records(config.lesion_dir, config.grid)
            splits['lesions'] = ((i, records.with_tissue(one, config.tissue)) for i, one in made)
        return splits

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        yield from enumerate(make_records(config.grid, split, size, tissue=config.tissue))
