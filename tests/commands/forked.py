"""Commands in processes forked from one that has the slow imports behind it.

Most of the time of a short command goes into importing JAX and TensorFlow. So one process imports
them without using them, and is forked for each command. Everything else is as for a user.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

IMPORTED = (
    'jax',
    'flax.linen',
    'optax',
    'orbax.checkpoint',
    'tensorboardX',
    'ml_collections',
    'tensorflow',
    'tensorflow_datasets',
    'array_record.python.array_record_data_source',
    'nibabel',
    'nilearn.image',
    'nilearn.masking',
    'SimpleITK',
    'skimage.measure',
    'sklearn.metrics',
    'matplotlib.figure',
    'scipy.ndimage',
    'scipy.stats',
)
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(list(IMPORTED))


def _become(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    outputs: tuple[str, str],
) -> None:
    gc.freeze()  # as tests/conftest.py does
    gc.set_threshold(100_000, 20, 100)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.path.insert(0, folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


def run(
    module: str,
    *arguments: object,
    folder: Path,
    scratch: Path,
    timeout: float = 400,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run `python -m MODULE ARGUMENTS` in a folder; returns the finished process.

    Args:
        folder: the working directory.
        scratch: folder for its output.
        timeout: seconds.
        environment: additional variables.
    """
    assert importlib.util.find_spec(module), module
    outputs = tuple(str(scratch / name) for name in ('stdout', 'stderr'))
    for path in outputs:
        Path(path).write_text('')
    words = [str(argument) for argument in arguments]
    process = _context.Process(
        target=_become, args=(module, words, os.environ | environment, str(folder), outputs)
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired([module, *words], timeout)
    return subprocess.CompletedProcess(
        [module, *words], process.exitcode, *(Path(path).read_text() for path in outputs)
    )
