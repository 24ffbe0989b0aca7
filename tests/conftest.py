"""Shared by all tests: where the reference data lie, and one compilation cache for every run."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
CHECKOUT = Path(__file__).resolve().parents[1]
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CHECKOUT / '.cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

import pytest  # noqa: E402


def _existing(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f'{path.name} is not beside this checkout')
    return path


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Real scans and reference numbers beside the checkout; tests that ask for it skip without."""
    return _existing(CHECKOUT.parent / 'shared')


@pytest.fixture(scope='session')
def golden_dir() -> Path:
    """Numbers computed by the published code (`$FLUIDJAX_GOLDEN` names another set)."""
    return _existing(Path(os.environ.get('FLUIDJAX_GOLDEN', CHECKOUT.parent / 'shared' / 'golden')))


@pytest.fixture(scope='session')
def checkout() -> Path:
    """The top of the checkout."""
    return CHECKOUT
