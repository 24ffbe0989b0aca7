"""What the commands expect of the environment, and what to say where it does not fit."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from fluidjax.base.errors import UserError
from fluidjax.base.failures import is_of_memory
from fluidjax.base.files import cache_home

P, T = ParamSpec('P'), TypeVar('T')
# Settings of JAX that would change the results or stop the work, and what they are set to instead.
# Other values, which are mistakes, are left to JAX's own check.
_REPLACED: Mapping[str, tuple[tuple[str, ...], str]] = {
    'JAX_ENABLE_X64': (('y', 'yes', 't', 'true', 'on', '1'), '0'),
    'JAX_DEFAULT_PRNG_IMPL': (('rbg', 'unsafe_rbg'), 'threefry2x32'),
    'JAX_NUMPY_DTYPE_PROMOTION': (('strict',), 'standard'),
    'JAX_NUMPY_RANK_PROMOTION': (('warn', 'raise'), 'allow'),
}
# Parameters of glibc's mallopt: no mmap, trim only above 2 GB, grow by 256 MB.
_KEEP_MEMORY = ((-4, 0), (-1, 2**31 - 1), (-2, 2**28))
FEWER_SCANS = (
    'take fewer at a time: a higher --config.STAGE.training.accumulate in training; for an '
    'evaluation repeat the train command with --config.detect.batch_size=1 (nothing is trained '
    'again), then eval'
)
_SUMS_BY_YNNPACK = ('0.10.2', '0.11.0')  # versions of jaxlib
_YNNPACK = 'xla_cpu_experimental_ynn_fusion_type'
_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_READS = os.path.join('jax', '_src', 'config.py')  # the file of JAX that reads the variables


def set_up() -> None:
    """Silence banners, cache compiled functions, and compute in JAX's usual way.

    Call it before importing JAX or TensorFlow; processes that are started later inherit it.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '1')
    for name, (values, usual) in _REPLACED.items():
        if os.environ.get(name, '').lower() in values:
            os.environ[name] = usual
    folder = os.environ.setdefault(_CACHE, str(cache_home() / 'xla'))
    if folder and '://' not in folder and not _can_be_written(Path(folder)):
        os.environ[_CACHE] = ''  # else JAX would warn after every compilation


def avoid_wrong_sums() -> None:
    """Keep sums from YNNPACK on CPUs, where JAX can be told so.

    jaxlib 0.10.2 hands them to it, and of large arrays with broadcast factors some come out wrong
    (jax-ml/jax#39103). Other versions than `_SUMS_BY_YNNPACK` may not know the setting.

    Importing fluidjax calls it; it has no effect once JAX is in use.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        known = importlib.metadata.version('jaxlib') in _SUMS_BY_YNNPACK
        if known and _YNNPACK not in flags:
            os.environ['XLA_FLAGS'] = f'{flags} --{_YNNPACK}=-reduce'.strip()


def use_all_cores() -> None:
    """Train on every core of a CPU, at up to twice the speed on two; other devices do not change.

    XLA computes a convolution on one core, so the cores share the batch as if they were devices.
    And glibc returns the memory of large arrays to the system after every step and fetches it
    again, page by page, in the next; it is asked to keep it.

    Call it before JAX is used.
    """
    import jax

    chosen = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    if not chosen and 'JAX_NUM_CPU_DEVICES' not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX is in use already
            jax.config.update('jax_num_cpu_devices', _cores())
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        keep = ctypes.CDLL(None).mallopt
        for parameter, value in _KEEP_MEMORY:
            keep(parameter, value)


def _cores() -> int:
    """The cores that this process may use, of at most eight."""
    available = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count() or 1))(0)
    return min(len(available), 8)


def explained(error: Exception) -> str | None:
    """The line for an error that the environment caused; None for other errors."""
    if isinstance(error, RuntimeError) and 'home directory' in str(error):
        return 'a path begins with ~, but there is no such home folder; write the whole path'
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if any(file.endswith(_READS) for file in files):
        return _of_variable(' '.join(str(error).split()))
    if is_of_memory(error):
        return out_of_memory(error, FEWER_SCANS)
    # JAX removes its own frames from errors, and some have no text: ask again.
    problem = _problem_of_device() if 'jax' in sys.modules else None
    return None if problem is None else _of_device(' '.join(str(problem).split())[:200])


def out_of_memory(error: BaseException, advice: str) -> str:
    """The line for an error of `is_of_memory`, with the size that did not fit, if it is known."""
    size = re.search(r'allocat\w* ([\d.]+ ?[KMGT]?i?B|\d+ bytes)', str(error))
    what = f' for {size[1]}' if size else ''
    return f'not enough memory{what}; {advice}'


@contextlib.contextmanager
def training_in_memory(stage: str, batch_size: int, accumulate: int = 1) -> Iterator[None]:
    """Say in one line which setting to change if the training of a stage does not fit a device.

    Args:
        stage: its name, as in the configuration.
        batch_size: samples of a step, over all devices.
        accumulate: parts in which each device goes through its samples.

    Raises:
        UserError: in place of the error of a device that ran out of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_of_memory(error):
            raise
        setting = f'config.{stage}.training'
        advice = (
            f'set {setting}.accumulate={2 * accumulate}, which takes the batch in more parts, or '
            f'lower {setting}.batch_size; fluidjax bench memory says what fits'
        )
        where = f'{stage} stage (batch_size={batch_size}, accumulate={accumulate})'
        raise UserError(f'{where}: {out_of_memory(error, advice)}') from error


def single_precision(function: Callable[P, T]) -> Callable[P, T]:
    """A function that computes as usual where the caller's program has JAX's x64 mode on.

    In that mode random numbers, and so the results, are others.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        import jax

        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return call


def check_devices() -> None:
    """Check that JAX can compute, before work in which errors would be counted as those of a scan
    or a trial.

    Raises:
        UserError: it cannot; names the variable that is wrong.
    """
    import jax.numpy as jnp

    try:
        jnp.zeros(1)
    except Exception as error:
        raise UserError(_of_device(' '.join(str(error).split())[:200])) from error


def _problem_of_device() -> Exception | None:
    try:
        check_devices()
    except UserError as error:
        return error.__cause__
    return None


def _of_variable(text: str) -> str | None:
    """The line for a variable that the message of JAX names, in capitals or not."""
    named = [
        name for name in os.environ if name.startswith('JAX_') and name.lower() in text.lower()
    ]
    if not named:
        return None
    name = max(named, key=len)
    return f'{name}: {os.environ[name]!r} is no value that JAX accepts; unset it or correct it'


def _of_device(text: str) -> str:
    """The line for JAX's message about its devices."""
    why = (
        text.partition(' (set JAX_PLATFORMS')[0]
        or 'there is none, or its version of JAX is missing'
    )
    chosen, device = os.environ.get('JAX_PLATFORMS'), os.environ.get('JAX_DEFAULT_DEVICE')
    if device and text.startswith('Unknown backend'):
        return f'JAX_DEFAULT_DEVICE={device}: there is no such device here ({why}); unset it'
    if chosen:
        return (
            f'JAX_PLATFORMS={chosen}: JAX cannot use such a device here ({why}); unset it, or set '
            'JAX_PLATFORMS=cpu'
        )
    return (
        f'JAX cannot use the device of this machine ({why}); to use the CPU set JAX_PLATFORMS=cpu'
    )


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, which need not exist, can be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
