"""The small files of a run by name, wherever it is kept: in its folder or in a model package."""

from __future__ import annotations

from pathlib import Path

# The model that comes with fluidjax, so that a first scan needs no training.
BUNDLED = Path(__file__).with_name('bundled_model.zip')


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
        from fluidjax.package_file import open_package

        return open_package(run).texts.get(name)
    path = run / name
    return path.read_text() if path.is_file() else None
