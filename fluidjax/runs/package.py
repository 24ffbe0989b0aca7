"""Model packages: one zip file with everything that `predict` and `eval` need of a run.

    package.json       format, versions, what the weights are, how scans are preprocessed
    config.json        the run's configuration, without the folders of the machine it was made on
    model.safetensors  the averaged parameters
    cohort.json        name and sizes of the cohort it was trained on
    calibration.json   recipe of the map and thresholds (if the run was evaluated)
    healthy_residual.json   its residual in healthy scans, if the recipe needs it
    metrics.json       scores (if the run was evaluated)
    README.md          the model card
    other_contrasts.zip     a package of its own, for scans of other contrasts (if there is one)

Members are stored without compression and with a fixed date: the same run gives the same bytes. A
package is never unpacked: no member's name becomes a path, sizes are checked before anything is
read, and nothing in it is executed.
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
from fluidjax.base.files import parse_json, write_bytes

# When older versions would misread what is written now, raise FORMAT, and set READER to the version
# of fluidjax that reads it. All formats from OLDEST on are read.
FORMAT, OLDEST, READER = 1, 1, '0.1.0'
MANIFEST, WEIGHTS, CARD = 'package.json', 'model.safetensors', 'README.md'
NEEDED = (MANIFEST, WEIGHTS, 'config.json', 'cohort.json', CARD)
OTHER = 'other_contrasts.zip'
OPTIONAL = ('calibration.json', 'healthy_residual.json', 'metrics.json', OTHER)
TEXT_LIMIT, WEIGHTS_LIMIT = 8 << 20, 8 << 30  # bytes
MOST_PACKED = 50  # weights do not compress better than this; a zip bomb does
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can store
_SEPARATOR = '/'
EXPORT_AGAIN = 'make the package again with fluidjax export'

# The model that comes with fluidjax, so that the first scan needs no training.
BUNDLED = Path(__file__).with_name('bundled_model.zip')

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Package:
    """An opened package; its weights are read later.

    Attributes:
        path: the zip file.
        manifest: the contents of package.json.
        texts: all other members except the weights, by name.
        other: the bytes of the package for other contrasts, or None.
        content: the bytes of this package, if it lies in another one.
    """

    path: Path
    manifest: dict[str, Any]
    texts: dict[str, str]
    other: bytes | None = None
    content: bytes | None = None

    def params(self, template: Params) -> Params:
        """The weights, float32, with the structure and shapes of the template.

        Raises:
            UserError: the weights are damaged, or do not fit the configuration.
        """
        flat = flax.traverse_util.flatten_dict(template, sep=_SEPARATOR)
        shapes = {name: tuple(leaf.shape) for name, leaf in flat.items()}
        where = f'{self.path}: {WEIGHTS}'
        with _opened(self.path, self.content) as archive, archive.open(WEIGHTS) as stream:
            size = archive.getinfo(WEIGHTS).file_size
            content = stream.read(size + 1)  # to the end, where the checksum is compared
        tensors = _decoded(content, shapes, where)
        return flax.traverse_util.unflatten_dict(tensors, sep=_SEPARATOR)


def write(
    path: Path,
    manifest: Mapping[str, Any],
    texts: Mapping[str, str],
    params: Params,
    half: bool = False,
    other: bytes | None = None,
) -> int:
    """Write a package; an existing file is replaced once the new one is complete.

    Args:
        path: the zip file.
        manifest: the contents of package.json; format and version of fluidjax are added.
        texts: the other members except the weights.
        params: the averaged parameters.
        half: store matrices and kernels as float16 where they fit into it.
        other: the package for other contrasts.

    Returns:
        Its size in bytes.
    """
    flat = flax.traverse_util.flatten_dict(params, sep=_SEPARATOR)
    tensors = {name: _stored(np.asarray(leaf), half) for name, leaf in flat.items()}
    manifest = {'format': FORMAT, 'reader': READER, 'fluidjax': __version__, **manifest}
    members = {
        MANIFEST: (json.dumps(manifest, indent=2) + '\n').encode(),
        **{name: text.encode() for name, text in texts.items()},
        WEIGHTS: safetensors.numpy.save(tensors),
        **({} if other is None else {OTHER: other}),
    }
    return _write_members(path, members)


def write_with_other(package: Path, path: Path, other: bytes) -> int:
    """Write a package again, with another one for other contrasts; returns its size in bytes."""
    with _opened(package) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return _write_members(path, {**members, OTHER: other})


def _write_members(path: Path, members: Mapping[str, bytes]) -> int:
    archive_bytes = io.BytesIO()
    with zipfile.ZipFile(archive_bytes, 'w', zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
            archive.writestr(info, content)
    write_bytes(path, archive_bytes.getvalue())
    return archive_bytes.tell()


def _stored(array: np.ndarray, half: bool) -> np.ndarray:
    """float32, or float16 for large arrays that lose no more than float16's rounding.

    Biases, norms and scales stay float32: they are few, and they affect everything they multiply.
    """
    array = array.astype(np.float32)
    if not half or array.ndim < 2:
        return array
    with np.errstate(over='ignore'):
        small = array.astype(np.float16)
    error = np.abs(small.astype(np.float32) - array).max(initial=0.0)
    return small if error <= 2.0**-10 * np.abs(array).max(initial=0.0) else array


def _decoded(content: bytes, expected: Mapping[str, tuple[int, ...]], where: str) -> Params:
    """Tensors in the safetensors format, as float32.

    Args:
        content: the file.
        expected: the shape of each tensor, by name.
        where: names the file in messages.

    Raises:
        UserError: the tensors are damaged, or not the expected ones.
    """
    try:
        tensors = safetensors.numpy.load(content)
    except Exception as error:  # safetensors' own exception, or numpy's for an unknown type
        raise UserError(
            f'{where}: is damaged ({" ".join(str(error).split())}); copy it again'
        ) from error
    for problem, names in (
        ('lacks tensors of the configuration beside it', set(expected) - set(tensors)),
        ('has tensors that the configuration beside it lacks', set(tensors) - set(expected)),
    ):
        if names:
            raise UserError(
                f'{where}: {problem}, {len(names)} in all, e.g. {sorted(names)[0]}; '
                'export the run again'
            )
    for name, array in tensors.items():
        if array.dtype not in (np.float16, np.float32):
            raise UserError(f'{where}: {name} is of type {array.dtype}, not float16 or float32')
        if array.shape != tuple(expected[name]):
            raise UserError(
                f'{where}: {name} has shape {list(array.shape)}, by the configuration beside it '
                f'{list(expected[name])}; export the run again'
            )
        if not np.isfinite(array).all():
            raise UserError(f'{where}: {name} has values that are not finite; export the run again')
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def open_package(path: Path, content: bytes | None = None) -> Package:
    """Read the texts of a package and check everything except the weights.

    Args:
        path: the zip file.
        content: the bytes of a package that lies in that file, or None.

    Raises:
        UserError: the file is not a package, or a damaged or harmful one, or of a format that this
            version does not read.
    """
    if content is None and not path.is_file():
        raise UserError(
            f'{path}: no such file; make a package: fluidjax export RUN --out=model.zip'
        )
    other = None
    with _opened(path, content) as archive:
        _check_members(path, archive.infolist())
        manifest = parse_json(_text(path, archive, MANIFEST), f'{path}: {MANIFEST}', EXPORT_AGAIN)
        texts = {
            name: _text(path, archive, name)
            for name in archive.namelist()
            if name not in (MANIFEST, WEIGHTS, OTHER)
        }
        if OTHER in archive.namelist():
            if content is not None:
                raise UserError(f'{path}: {OTHER} contains another package; {EXPORT_AGAIN}')
            other = archive.read(OTHER)
    _check_manifest(path, manifest)
    for name, text in texts.items():
        if name != CARD:
            parse_json(text, f'{path}: {name}', EXPORT_AGAIN)
    return Package(path, manifest, texts, other, content)


@contextlib.contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[zipfile.ZipFile]:
    """The opened zip, a file or its bytes; any error of reading it becomes a UserError."""
    try:
        with zipfile.ZipFile(path if content is None else io.BytesIO(content)) as archive:
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
            f'{path}: is not a model package, or is damaged ({reason}); copy it again'
        ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Check names and sizes before anything is read."""
    names = [member.filename for member in members]
    for name in names:
        if name not in NEEDED + OPTIONAL:
            raise UserError(
                f'{path}: contains {name[:80]!r}, which is not part of a model package; '
                f'{EXPORT_AGAIN}'
            )
        if names.count(name) > 1:
            raise UserError(f'{path}: contains {name} twice; {EXPORT_AGAIN}')
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(
            f'{path}: lacks {", ".join(missing)}, so it is not a complete model package; '
            f'{EXPORT_AGAIN}'
        )
    for member in members:
        limit = WEIGHTS_LIMIT if member.filename in (WEIGHTS, OTHER) else TEXT_LIMIT
        packed = max(member.compress_size, 1)
        if member.file_size > limit or (
            member.file_size > 1 << 16 and member.file_size > MOST_PACKED * packed
        ):
            raise UserError(
                f'{path}: {member.filename} would unpack to {member.file_size:,} bytes '
                f'from {member.compress_size:,}, which no model does; do not trust it'
            )


def _text(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as stream:
        content = stream.read(TEXT_LIMIT + 1)
    if len(content) > TEXT_LIMIT:
        raise UserError(f'{path}: {name} is longer than its own entry says; do not trust it')
    return content.decode()


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Check format and fields of package.json."""
    number = manifest.get('format')
    if type(number) is not int or number < 1:
        raise UserError(f'{path}: {MANIFEST} has no format; {EXPORT_AGAIN}')
    if number > FORMAT:
        raise UserError(
            f'{path}: is of format {number}, made by fluidjax {manifest.get("fluidjax")}; this is '
            f'{__version__}, which reads up to {FORMAT}: install fluidjax '
            f'{manifest.get("reader")} or newer'
        )
    if number < OLDEST:
        raise UserError(
            f'{path}: is of format {number}, which fluidjax {__version__} no longer reads; export '
            f'the run again with this version, or install fluidjax {manifest.get("fluidjax")}'
        )
    for name, kind in (('step', int), ('preprocessing', dict), ('weights', str)):
        if not isinstance(manifest.get(name), kind):
            raise UserError(f'{path}: {MANIFEST} has no field {name}; {EXPORT_AGAIN}')


def check_not_unpacked(run: Path) -> None:
    """Check that a folder is not the unpacked zip of a model package.

    Raises:
        UserError: it is.
    """
    if (run / MANIFEST).is_file() and (run / WEIGHTS).is_file():
        raise UserError(
            f'{run}: is an unpacked model package; give its .zip as it came, or pack it again: '
            f'(cd {run} && python3 -m zipfile -c ../{run.resolve().name}.zip *)'
        )


def is_package(run: Path) -> bool:
    """Whether a path names a model package, existing or not, rather than a run's folder."""
    return run.is_file() or (run.suffix.lower() == '.zip' and not run.is_dir())
