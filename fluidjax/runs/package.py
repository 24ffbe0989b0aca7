"""A model package: one zip that is all of a run that `predict` and `eval` need.

    package.json       format, versions, what the weights are, how scans are preprocessed
    config.json        the run's configuration, without folders of the machine it was made on
    model.safetensors  the averaged parameters
    cohort.json        name and sizes of the cohort it was trained on
    calibration.json   thresholds (where the run was evaluated)
    metrics.json       its scores (the same)
    README.md          the model card

Members are stored, not compressed, with one fixed date: the same run gives the same bytes. A
package is read where it lies and never unpacked: no member's name becomes a path, sizes are checked
before anything is read, and nothing in it is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors.numpy

from fluidjax.base import __version__
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes

# Raise FORMAT when a reader of before would misread what is written now, and put the version of
# fluidjax that does so in READER; keep reading formats from OLDEST on.
FORMAT, OLDEST, READER = 1, 1, '0.1.0'
MANIFEST, WEIGHTS, CARD = 'package.json', 'model.safetensors', 'README.md'
NEEDED = (MANIFEST, WEIGHTS, 'config.json', 'cohort.json', CARD)
OPTIONAL = ('calibration.json', 'metrics.json')
TEXT_LIMIT, WEIGHTS_LIMIT = 8 << 20, 8 << 30  # bytes
MOST_PACKED = 50  # weights do not shrink more than this; a bomb does
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_SEPARATOR = '/'

# The model that comes with fluidjax, so that a first scan needs no training.
BUNDLED = Path(__file__).with_name('bundled_model.zip')

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Package:
    """An opened package; its weights are still in the file.

    Attributes:
        path: the zip.
        manifest: package.json.
        texts: every other member but the weights, by name.
    """

    path: Path
    manifest: dict[str, Any]
    texts: dict[str, str]

    def params(self, template: Params) -> Params:
        """The weights, float32, as a tree of the template's groups and shapes.

        Raises:
            UserError: weights that are damaged, or not those of the configuration.
        """
        flat = flax.traverse_util.flatten_dict(template, sep=_SEPARATOR)
        shapes = {name: tuple(leaf.shape) for name, leaf in flat.items()}
        where = f'{self.path}: {WEIGHTS}'
        with _opened(self.path) as archive, archive.open(WEIGHTS) as stream:
            size = archive.getinfo(WEIGHTS).file_size
            content = stream.read(size + 1)  # to the end, where the zip's checksum is compared
        tensors = _decoded(content, shapes, where)
        return flax.traverse_util.unflatten_dict(tensors, sep=_SEPARATOR)


def write(
    path: Path,
    manifest: Mapping[str, Any],
    texts: Mapping[str, str],
    params: Params,
    half: bool = False,
) -> int:
    """Write a package, beside and renamed.

    Args:
        path: the zip.
        manifest: what package.json says beside the format and the version of fluidjax.
        texts: the other members but the weights.
        params: the averaged parameters.
        half: store matrices and kernels as float16 where they fit in it.

    Returns:
        Its size in bytes.
    """
    flat = flax.traverse_util.flatten_dict(params, sep=_SEPARATOR)
    tensors = {name: _stored(np.asarray(leaf), half) for name, leaf in flat.items()}
    head = {'format': FORMAT, 'reader': READER, 'fluidjax': __version__, **manifest}
    members = {
        MANIFEST: (json.dumps(head, indent=2) + '\n').encode(),
        **{name: text.encode() for name, text in texts.items()},
        WEIGHTS: safetensors.numpy.save(tensors),
    }
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, 'w', zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16  # alike on every system
            archive.writestr(info, content)
    write_bytes(path, whole.getvalue())
    return whole.tell()


def _stored(array: np.ndarray, half: bool) -> np.ndarray:
    """float32, or float16 for what is large and loses no more than its rounding by it.

    Biases, norms and scales stay: they are few, and all that they multiply would feel it.
    """
    array = array.astype(np.float32)
    if not half or array.ndim < 2:
        return array
    with np.errstate(over='ignore'):
        small = array.astype(np.float16)
    error = np.abs(small.astype(np.float32) - array).max(initial=0.0)
    return small if error <= 2.0**-10 * np.abs(array).max(initial=0.0) else array


def _decoded(content: bytes, expected: Mapping[str, tuple[int, ...]], where: str) -> Params:
    """Tensors in safetensors' format as float32.

    Raises:
        UserError: they are damaged, or not those that are expected.
    """
    try:
        tensors = safetensors.numpy.load(content)
    except Exception as error:  # safetensors' own exception, or numpy's for an unknown type
        raise UserError(
            f'{where}: is damaged ({" ".join(str(error).split())}); copy it again'
        ) from error
    for kind, names in (
        ('lacks', set(expected) - set(tensors)),
        ('holds', set(tensors) - set(expected)),
    ):
        if names:
            what = 'which the configuration beside it ' + ('needs' if kind == 'lacks' else 'lacks')
            raise UserError(
                f'{where}: {kind} {len(names)} tensor(s), {what}, e.g. '
                f'{sorted(names)[0]}; export the run again'
            )
    for name, array in tensors.items():
        if array.dtype not in (np.float16, np.float32):
            raise UserError(f'{where}: {name} is of type {array.dtype}, not float16 or float32')
        if array.shape != tuple(expected[name]):
            raise UserError(
                f'{where}: {name} has shape {list(array.shape)}, the configuration '
                f'beside it makes {list(expected[name])}; export the run again'
            )
        if not np.isfinite(array).all():
            raise UserError(
                f'{where}: {name} holds values that are not finite; export the run again'
            )
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def open_package(path: Path) -> Package:
    """Read a package's texts and check all of it but the weights.

    Raises:
        UserError: no package, a damaged one, one that could do harm, or of a format that this
            version does not read.
    """
    if not path.is_file():
        raise UserError(
            f'{path}: no such file; make a package: fluidjax export RUN --out=model.zip'
        )
    with _opened(path) as archive:
        _check_members(path, archive.infolist())
        manifest = _manifest(path, _text(path, archive, MANIFEST))
        texts = {
            name: _text(path, archive, name)
            for name in archive.namelist()
            if name not in (MANIFEST, WEIGHTS)
        }
    for name, text in texts.items():
        if name != CARD:
            _json(path, name, text)
    return Package(path, manifest, texts)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip; whatever is wrong with it while it is open is one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        KeyError,
        OverflowError,
    ) as error:
        reason = ' '.join(str(error).split())[:100] or type(error).__name__
        raise UserError(
            f'{path}: is no model package, or a damaged one ({reason}); copy it again'
        ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Names and sizes, before anything is read."""
    names = [member.filename for member in members]
    for name in names:
        if name not in NEEDED + OPTIONAL:
            raise UserError(
                f'{path}: holds {name[:80]!r}, which is no part of a model package; '
                'make it again with fluidjax export'
            )
        if names.count(name) > 1:
            raise UserError(f'{path}: holds {name} twice; make it again with fluidjax export')
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(
            f'{path}: lacks {", ".join(missing)}, so it is no whole model package; '
            'make it again with fluidjax export'
        )
    for member in members:
        limit = WEIGHTS_LIMIT if member.filename == WEIGHTS else TEXT_LIMIT
        packed = max(member.compress_size, 1)
        if member.file_size > limit or (
            member.file_size > 1 << 16 and member.file_size > MOST_PACKED * packed
        ):
            raise UserError(
                f'{path}: {member.filename} would unpack to {member.file_size:,} bytes '
                f'from {member.compress_size:,}, as no model does; do not trust it'
            )


def _text(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as stream:
        content = stream.read(TEXT_LIMIT + 1)
    if len(content) > TEXT_LIMIT:
        raise UserError(f'{path}: {name} is longer than its own entry says; do not trust it')
    return content.decode()


def _json(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise UserError(
            f'{path}: {name} is no table in JSON; make the package again with fluidjax export'
        )
    return held


def _manifest(path: Path, text: str) -> dict[str, Any]:
    manifest = _json(path, MANIFEST, text)
    number = manifest.get('format')
    if type(number) is not int or number < 1:
        raise UserError(
            f'{path}: {MANIFEST} names no format; make the package again with fluidjax export'
        )
    if number > FORMAT:
        raise UserError(
            f'{path}: is of format {number}, made by fluidjax '
            f'{manifest.get("fluidjax")}; this is {__version__}, which reads '
            f'up to {FORMAT}: install fluidjax {manifest.get("reader")} or newer'
        )
    if number < OLDEST:
        raise UserError(
            f'{path}: is of format {number}, which fluidjax {__version__} no '
            'longer reads; export the run again with this version, or install fluidjax '
            f'{manifest.get("fluidjax")}'
        )
    for name, kind in (('step', int), ('preprocessing', dict), ('weights', str)):
        if not isinstance(manifest.get(name), kind):
            raise UserError(
                f'{path}: {MANIFEST} does not say {name}; make the package again with '
                'fluidjax export'
            )
    return manifest


def is_package(run: Path) -> bool:
    """Whether a path names a model package, there or not, rather than a run's folder."""
    return run.is_file() or (run.suffix.lower() == '.zip' and not run.is_dir())


def read_text(run: Path, name: str) -> str | None:
    """A text file of a run, or None where it has none.

    Args:
        run: its folder, or its model package.
        name: 'config.json', 'cohort.json' or 'calibration.json'.

    Raises:
        UserError: a package that cannot be read.
    """
    if is_package(run):
        return open_package(run).texts.get(name)
    path = run / name
    return path.read_text() if path.is_file() else None
