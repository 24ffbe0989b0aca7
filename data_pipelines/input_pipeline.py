"""Cohorts on disk, and tf.data batches from them, determined by a seed and a step number.

`template_cohort` and `nifti_cohort` build a cohort once (TFDS, array_record files), later they only
open it. The samples that `batches` gives for a step do not depend on the first step or the number
of processes, so a resumed run is trained on the same batches as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Set before TensorFlow is first imported, which otherwise prints to stderr.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import joblib  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from absl import logging  # noqa: E402

from data_pipelines import grids, preparation  # noqa: E402
from data_pipelines import nifti_cohort as nifti_cohort_builder  # noqa: E402
from data_pipelines import template_cohort as template_cohort_builder  # noqa: E402
from data_pipelines.nifti_source import NiftiSource  # noqa: E402
from fluidjax.base import files  # noqa: E402
from fluidjax.base.errors import UserError  # noqa: E402
from fluidjax.base.subject import TISSUES, Subject  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

tf.config.set_visible_devices([], 'GPU')  # their memory is for JAX
tfds.disable_progress_bar()

FILE_FORMAT = 'array_record'
# A split whose images fit into this many bytes is decoded once and kept in memory.
MEMORY_LIMIT_BYTES = 1 << 30
MOST_THREADS = 16  # each unpacks one sample, 20 MB at the paper's size


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A finished cohort on disk.

    Attributes:
      name: in reports.
      grid: of its images.
      directory: the TFDS version folder with its records.
      sizes: number of subjects of each split that has any.
      tissue: whether its records contain tissue fractions, see `tissue`.
    """

    name: str
    grid: grids.ModelGrid
    directory: Path
    sizes: dict[str, int]
    tissue: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What a batch contains of each sample."""
        return ('image', 'brain', 'tissue') if self.tissue else ('image', 'brain')


def template_cohort(
    scale: str, store: Path, lesion_dir: str | os.PathLike[str] = '', tissue: bool = False
) -> Cohort:
    """The embedded cohort at a scale ('demo', 'paper' ...), built in `store` if necessary.

    Args:
      scale: its grid and number of subjects.
      store: folder of cohorts.
      lesion_dir: folder of lesion masks in MNI152 space, which training transports.
      tissue: whether the records contain tissue fractions.

    Raises:
      UserError: no such scale, or a folder or mask that cannot be used.
    """
    known = template_cohort_builder.SCALES
    if scale not in known:
        raise UserError(f"template cohort: no scale '{scale}'; choose one of {', '.join(known)}")
    make = lambda: template_cohort_builder.TemplateCohort(
        config=template_cohort_builder.config_for(scale, os.fspath(lesion_dir), tissue),
        data_dir=os.fspath(store),
        file_format=FILE_FORMAT,
    )
    return _build(f'template_{scale}', grids.GRIDS[scale], make)


def nifti_cohort(
    grid: grids.ModelGrid,
    store: Path,
    data_dir: str | os.PathLike[str],
    test_dir: str | os.PathLike[str] = '',
    lesion_dir: str | os.PathLike[str] = '',
    registration: str = 'affine',
    seed: int = 0,
    embedded: int = 0,
    contrasts: tuple[str, ...] = (),
    labels: str = '',
) -> Cohort:
    """The cohort of the user's own scans or label maps, built in `store` if necessary.

    This takes about 5 s per scan with registration, and little time if the scans were prepared
    (`preparation`). A changed file or setting gives another cohort.

    Args:
      grid, data_dir, test_dir, lesion_dir, registration, seed, labels: see
        `nifti_source.NiftiSource`.
      store: folder of cohorts and prepared scans.
      embedded: number of subjects of the embedded cohort to add to the training split.
      contrasts: for a run whose scans are synthesised, those of its test scans; the records then
        contain tissue fractions.

    Raises:
      UserError: a folder or file that cannot be used, by name, or fewer than two healthy scans.
    """
    folders = (os.fspath(folder) for folder in (data_dir, test_dir, lesion_dir))
    source = NiftiSource(grid, *folders, registration, seed, labels=labels)
    source = preparation.as_prepared(source, store)
    if contrasts:
        source = dataclasses.replace(source, test_contrasts=contrasts)
    config = nifti_cohort_builder.config_for(source, embedded, bool(contrasts))
    make = lambda: nifti_cohort_builder.NiftiCohort(
        config=config, data_dir=os.fspath(store), file_format=FILE_FORMAT
    )
    return _build(f'nifti_{Path(data_dir).name}', grid, make)


def _build(
    name: str, grid: grids.ModelGrid, make: Callable[[], tfds.core.DatasetBuilder]
) -> Cohort:
    """Build a cohort if necessary. TFDS writes it under another name and renames it at the end."""
    with _quiet_tfds(), _alone_in(Path(make().data_dir)), tempfile.TemporaryDirectory() as scratch:
        builder = make()  # again, as another process may have built it in the meantime
        # TFDS creates a download folder, though nothing is downloaded.
        builder.download_and_prepare(
            download_dir=scratch,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    there = {split: count for split, count in sizes.items() if count}
    return Cohort(name, grid, Path(builder.data_dir), there, 'tissue' in builder.info.features)


@contextlib.contextmanager
def _alone_in(home: Path) -> Iterator[None]:
    """Let other processes of this machine that need the same cohort wait until it is built."""
    if home.is_dir():  # it is built; the store may be read-only
        yield
        return
    with files.locked_in_turn(home.parent / f'.{home.name}.lock'):
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence what TFDS prints to stdout and logs; the progress bar on stderr remains."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, 'w') as sink, contextlib.redirect_stdout(sink):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _records(cohort: Cohort, split: str, only: tuple[str, ...] = ()) -> Sequence[dict]:
    """Random access to the records of a split, decoded to numpy.

    Args:
      cohort: to read.
      split: one of its splits.
      only: the fields to unpack; the others stay as they are in the file, which saves time. All by
        default.
    """
    if not cohort.sizes.get(split):
        there = ', '.join(f'{s} ({n})' for s, n in cohort.sizes.items())
        raise UserError(f"cohort {cohort.name}: split '{split}' has no subject; it has {there}")
    builder = tfds.builder_from_directory(os.fspath(cohort.directory))
    left = set(builder.info.features) - set(only) if only else ()
    return builder.as_data_source(split, decoders={f: tfds.decode.SkipDecoding() for f in left})


def subjects(cohort: Cohort, split: str) -> Iterator[Subject]:
    """All subjects of a split, in the order of its records. UserError for an empty split."""
    yield from map(_subject, _records(cohort, split))


def embedded_subjects(grid: grids.ModelGrid, count: int, first: int) -> Iterator[Subject]:
    """Test subjects of the embedded cohort that no cohort on disk contains, made anew.

    Args:
      grid: of their images.
      count: number of subjects.
      first: number of the first one; at least the size of the cohort's test split.
    """
    yield from map(_subject, template_cohort_builder.make_records(grid, 'test', count, None, first))


def _subject(record: dict) -> Subject:
    name = record['name']
    return Subject(
        name=name.decode() if isinstance(name, bytes) else name,
        image=record['image'],
        brain=record['brain'].astype(bool),
        lesion=record['lesion'].astype(bool) if record['has_lesion'] else None,
        healthy=record['healthy'] if record['has_healthy'] else None,
        affine=record['affine'],
        tissue=record.get('tissue'),
    )


def lesion_bank(cohort: Cohort) -> np.ndarray | None:
    """The lesion masks of the bank, (n, x, y, z) uint8, or None if the cohort has no bank."""
    if 'lesions' not in cohort.sizes:
        return None
    return np.stack([record['lesion'] for record in _records(cohort, 'lesions', ('lesion',))])


def load_images(cohort: Cohort, split: str) -> tuple[np.ndarray, ...]:
    """The `Cohort.fields` of all samples of a split: arrays (n, x, y, z, channels).

    They are images (float32) and brain masks (uint8), and tissue fractions (uint8) if there are.
    """
    records = _records(cohort, split, cohort.fields)
    arrays = None
    for i, record in enumerate(records):
        sample = _volumes(record, cohort.fields)
        if arrays is None:
            arrays = tuple(np.empty((len(records), *v.shape), v.dtype) for v in sample)
        for array, volume in zip(arrays, sample, strict=True):
            array[i] = volume
    return arrays


def _volumes(record: dict, fields: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Fields of a record, each (x, y, z, channels)."""
    volumes = (record[field] for field in fields)
    return tuple(v if v.ndim == 4 else v[..., None] for v in volumes)


def _fetcher(cohort: Cohort, split: str) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Sample number -> its volumes, from memory if the split is small, else from its records."""
    bytes_each = (5 + len(TISSUES) * cohort.tissue) * np.prod(cohort.grid.shape)
    if bytes_each * cohort.sizes.get(split, 0) <= MEMORY_LIMIT_BYTES:
        arrays = load_images(cohort, split)
        return lambda index: tuple(array[index] for array in arrays)
    records = _records(cohort, split, cohort.fields)
    return lambda index: _volumes(records[int(index)], cohort.fields)


def sample_index(step, slot, size: int, global_batch: int, seed: int):
    """The sample at `slot` of the global batch of `step`: a TensorFlow integer.

    Each epoch is another permutation, which is computed from (seed, epoch) and never stored. An
    epoch has as many whole batches as fit into the split, so the samples of a global batch differ.
    A split smaller than the batch is repeated within it, in another order each time.
    """
    steps_per_epoch = max(1, size // global_batch)
    epoch, step_in_epoch = step // steps_per_epoch, step % steps_per_epoch
    position = step_in_epoch * global_batch + slot
    laps_per_epoch = -(-max(size, global_batch) // size)
    lap = epoch * laps_per_epoch + position // size
    permutation = tf.stack([tf.cast(seed, tf.int64), tf.cast(lap, tf.int64)])
    return tf.random.experimental.index_shuffle(position % size, permutation, size - 1)


def batches(
    cohort: Cohort,
    split: str,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    shuffled: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches for one process, in the layout of pmap.

    Args:
      cohort: to read.
      split: 'train', 'validation' or 'test'.
      batch_size: samples per step of this process; the global batch is `process_count` times it.
      seed: of the shuffle.
      start_step: number of the first batch; a large one takes no time.
      num_devices: local devices; they share `batch_size` evenly.
      process_index: number of this process, for its part of the global batch.
      process_count: number of processes.
      shuffled: False: in the order of the split, over and over.

    Yields:
      {'image', 'brain'}: float32 and uint8 (device, batch_size / num_devices, x, y, z, 1); and
        'tissue', uint8 with a channel for each tissue, if the cohort has them.

    Raises:
      UserError: an empty split, or a batch that the devices cannot share evenly.
    """
    if batch_size < 1 or batch_size % num_devices:
        raise UserError(
            f'batch size {batch_size} cannot be shared by {num_devices} device(s);'
            ' set a multiple of the number of devices'
        )
    fetch = _fetcher(cohort, split)
    size, whole = cohort.sizes[split], batch_size * process_count
    in_order = lambda step, slot: (step * whole + slot) % size
    dataset = _dataset(
        fetch,
        cohort,
        (lambda step, slot: sample_index(step, slot, size, whole, seed)) if shuffled else in_order,
        first_slot=process_index * batch_size,
        batch_size=batch_size,
        start_step=start_step,
    )
    per_device = (num_devices, batch_size // num_devices)
    split_batch = lambda data: data.reshape(*per_device, *data.shape[1:])
    return (
        {field: split_batch(data) for field, data in zip(cohort.fields, volumes, strict=True)}
        for volumes in dataset.as_numpy_iterator()
    )


def _threads() -> int:
    """Threads that fetch samples: one for each CPU that this process may use, at most 16."""
    return min(joblib.cpu_count(), MOST_THREADS)


def _dataset(fetch, cohort: Cohort, index, first_slot: int, batch_size: int, start_step: int):
    """step number -> sample number -> record -> batch -> prefetch, in fixed order.

    The order of the batches does not depend on the number of threads.
    """
    threads = _threads()
    kinds = {'image': (tf.float32, 1), 'brain': (tf.uint8, 1), 'tissue': (tf.uint8, len(TISSUES))}
    types, channels = zip(*(kinds[field] for field in cohort.fields), strict=True)

    @tf.autograph.experimental.do_not_convert
    def load(number):
        sample = index(number // batch_size, first_slot + number % batch_size)
        volumes = tf.numpy_function(fetch, [sample], list(types), stateful=False)
        shape = cohort.grid.shape
        return tuple(tf.ensure_shape(v, (*shape, c)) for v, c in zip(volumes, channels))

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    numbers = tf.data.Dataset.range(start_step * batch_size, sys.maxsize)
    dataset = numbers.map(load, num_parallel_calls=threads).batch(batch_size, drop_remainder=True)
    return dataset.prefetch(2).with_options(options)
