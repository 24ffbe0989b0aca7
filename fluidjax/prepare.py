"""Make scans ready for training: `python -m fluidjax.prepare DATA --out=STORE`.

DATA is a folder of skull-stripped T1w scans, BIDS or plain. They are preprocessed in parallel and
kept in STORE, with a page to look at, STORE/summary.html. Train on them with

    python -m fluidjax.main --config=configs/ldm.py:demo,cohort=nifti --workdir=RUN
        --config.cohort.data_dir=DATA --config.cohort.store=STORE

and the same --config.cohort.test_dir and lesion_dir, if any. Interrupted or given again, it goes on
with what is missing. See `data_pipelines.preparation`.
"""

import os
from pathlib import Path

from absl import flags

from fluidjax import cli

OUT = flags.DEFINE_string('out', None, 'Folder to write to: config.cohort.store of the runs.')
SIZE = flags.DEFINE_string('size', 'demo', "The model grid: the configuration's size.")
REGISTRATION = flags.DEFINE_string(
    'registration', 'affine', "'affine', or 'none' for scans that are in MNI152 space already.")
TEST_DIR = flags.DEFINE_string('test_dir', '', 'Folder of scans for the test split.')
LESION_DIR = flags.DEFINE_string('lesion_dir', '', 'Folder of lesion masks in MNI152 space.')
WORKERS = flags.DEFINE_integer('workers', None, 'Processes; as many as cores without.',
                               lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Of the division into training and validation: '
                            'config.seed of the run.', lower_bound=0)
SPLIT_COLUMN = flags.DEFINE_string(
    'split-column', '', 'Column of DATA/participants.tsv that holds train, validation or test.')
LISTS = {split: flags.DEFINE_string(f'{split}-list', '', 'Text file, one subject a line, for the '
                                    f'{split} split.')
         for split in ('train', 'validation', 'test')}
SKIP_FAILURES = flags.DEFINE_bool('skip-failures', False, 'Leave out files that cannot be used.')


def main(folders: list[str]) -> None:
    """Read the flags and prepare."""
    from data_pipelines.prepared_store import Request, build
    from data_pipelines.subject_splits import Choice

    if len(folders) != 1 or not OUT.value:
        raise cli.UserError('prepare needs one folder of scans and --out=STORE, e.g. python -m '
                            'fluidjax.prepare scans --out=prepared')
    lists = {split: flag.value for split, flag in LISTS.items() if flag.value}
    print(build(Request(
        data_dir=folders[0], store=Path(OUT.value).expanduser(), size=SIZE.value,
        registration=REGISTRATION.value, test_dir=TEST_DIR.value, lesion_dir=LESION_DIR.value,
        seed=SEED.value, choice=Choice(SPLIT_COLUMN.value, lists),
        workers=WORKERS.value or os.cpu_count() or 1, skip_failures=SKIP_FAILURES.value)))


if __name__ == '__main__':
    cli.run(main, takes_arguments=True, interrupted='the same command goes on with what is missing')
