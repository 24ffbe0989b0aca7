"""The folder that `fluidjax predict` writes to: whether it may, its description and its index."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.file_names import Kind, kind_of
from data_pipelines.folder_walk import holds_predictions
from data_pipelines.image_files import checksum, ending_of
from data_pipelines.volume_io import strip_ending
from fluidjax.base import __version__
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import asset, read_json, write_json, write_text
from fluidjax.base.names import shown
from fluidjax.predict import page
from fluidjax.predict.files import BRAIN_MASK, TABLE, short_names
from fluidjax.predict.scans import ScanFile

BIDS_VERSION = '1.10.0'
DESCRIPTION = 'dataset_description.json'


def check_folder(out: Path) -> None:
    """Check that a folder can be written to, and is absent or holds no other data set.

    Raises:
        UserError: it is a file, cannot be written to, or holds another data set, scans, or files
            that would be overwritten.
    """
    path = out / DESCRIPTION
    check_output(out, '--out')
    if path.is_file() and not holds_predictions(out):
        raise UserError(
            f'--out: {out} holds another data set (its {DESCRIPTION} is not of fluidjax); '
            'name another folder'
        )
    if holds_predictions(out) or not out.is_dir():
        return
    written = [out / name for name in ('README.md', '.bidsignore', 'index.html')]
    other = next(itertools.chain(filter(Path.exists, written), _foreign_images(out)), None)
    if other is not None:
        name = shown(other.relative_to(out))
        raise UserError(
            f'--out: {out} holds files that predict did not write, as {name}; they would be '
            f'overwritten or taken for results: name a new folder, e.g. {out / "fluidjax"}'
        )


def _foreign_images(out: Path) -> Iterator[Path]:
    """The image files below a folder but for results, which a run that was killed leaves there.

    They are looked for one by one, as a large tree takes long.
    """
    seen = set()
    for here, folders, names in os.walk(out, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [name for name in folders if name[0] != '.' and real not in seen]
        yield from (Path(here, name) for name in sorted(names) if _is_foreign_image(name))
        seen.add(real)


def _is_foreign_image(name: str) -> bool:
    if name.startswith('.') or not ending_of(name):
        return False
    return kind_of(name)[0] != Kind.RESULT and not strip_ending(name).endswith(f'_{BRAIN_MASK}')


def describe_folder(out: Path) -> None:
    """Write what BIDS wants in a data set: its description, `README.md` and `.bidsignore`."""
    generator = {
        'Name': 'fluidjax',
        'Version': __version__,
        'Description': 'Research use; not for diagnosis',
    }
    write_json(
        out / DESCRIPTION,
        {
            'Name': 'Anomalies in T1w scans',
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'derivative',
            'GeneratedBy': [generator],
        },
    )
    write_text(out / 'README.md', asset(page.HERE, 'README.md'))
    write_text(out / '.bidsignore', asset(page.HERE, 'bidsignore'))


def refuse_another_scan(out: Path, file: ScanFile) -> None:
    """Check that the place of a scan's results holds none of another scan of the same name.

    The same file elsewhere, and a file that was changed since, may replace their results.

    Raises:
        UserError: it does.
    """
    own = short_names(file)
    table = out / own.folder / f'{own.name}_{TABLE}.json'
    if not table.is_file():
        return
    before = read_json(table, 'delete it').get('Summary', {})
    if before.get('scan') in (None, shown(file.path)) or 'sha256' not in before:
        return
    try:
        same = before['sha256'] == checksum(file.path)
    except OSError:  # reading the scan says what is wrong with it, and stops no other
        return
    if not same:
        raise UserError(
            f'{shown(file.path)}: {shown(table.parent)} holds the results of {before["scan"]}, '
            'which has the same name; give another --out, or predict both in one command'
        )


def write_folder_index(out: Path, failures: Sequence[str]) -> Path:
    """Write `index.html`: every scan predicted into the folder, now or before."""
    summaries = []
    for path in sorted(out.rglob(f'*_{TABLE}.json')):
        if not any(part.startswith('.') for part in path.relative_to(out).parts):
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # another program's
                summary = json.loads(path.read_text('utf-8'))['Summary']
                summaries.append({name: summary[name] for name in page.SUMMARY})
    page.write_index(out / 'index.html', summaries, failures)
    return out / 'index.html'
