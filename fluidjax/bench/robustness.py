"""What a model marks in healthy scans: as they are, and with changes that are no lesion.

All that is marked in a healthy scan is wrong. The scans are brought onto the model's grid as
`fluidjax predict` does it, changed there, and brought to the level of white matter again; strong
shading is divided out, as in a prediction.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipelines import bias_field as coil
from data_pipelines.grids import ModelGrid
from data_pipelines.preprocess import preprocess
from data_pipelines.scan_arguments import given_scans
from data_pipelines.scan_folders import counted
from data_pipelines.volume_io import load_volume
from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Subject
from fluidjax.bench.timer import Table
from fluidjax.detect.calibrate import marked_ml
from fluidjax.fluid.anatomy import CENTRE_MM, WALL_MM, from_ventricles
from fluidjax.methods import variants
from fluidjax.runs import thresholds
from fluidjax.runs.cohort import trained_contrasts
from fluidjax.runs.detector import Detector
from fluidjax.runs.laws import at_level_of
from fluidjax.runs.load import Run, load_run

LOG_SHADING = 0.3  # standard deviation of the shading's logarithm in the brain
FALL = 0.5  # logarithm of the fall towards the cerebellum
WIDER_MM = 6.0  # of the ventricles, in the mean of their walls
SLICE_MM, BLUR_MM = 5.0, 3.0  # or, if that is more, this many voxels:
SLICE_VOXELS, BLUR_VOXELS = 2.0, 1.5
CUT_MM = 3.0
TABLE = Table(
    24,
    ('marked', 'draws', '8.0f'),
    ('median ml', 'median', '12.1f'),
    ('90 % below', '90', '12.1f'),
    ('most ml', 'most', '10.1f'),
    ('in ventricles', 'ventricles', '15.1f'),
)
NOWHERE = Path('/nonexistent')  # nothing is written, so no file is a result
Volume = jax.Array


class Change(NamedTuple):
    """A change of healthy scans that is no lesion.

    made: (key, image, brain) -> image, brain; (x, y, z), both float32.
    is_random: whether it depends on the key.
    """

    made: Callable[[jax.Array, Volume, Volume], tuple[Volume, Volume]]
    is_random: bool


def changes_of(spacing: tuple[float, float, float]) -> dict[str, Change]:
    """The changes, by the names of their rows."""
    slices = max(SLICE_MM, SLICE_VOXELS * spacing[2])
    blur = max(BLUR_MM, BLUR_VOXELS * max(spacing))

    def shaded(key: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        field = variants.smooth_field(key, image.shape)
        voxels = brain.sum()
        mean = jnp.sum(field * brain) / voxels
        spread = jnp.sqrt(jnp.sum((field - mean) ** 2 * brain) / voxels)
        return variants.shade(image, brain, LOG_SHADING * (field - mean) / spread), brain

    def fallen(_: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        low = variants.cerebellum(image.shape, spacing, CENTRE_MM)
        return variants.shade(image, brain, -FALL * jnp.asarray(low)), brain

    def wider(key: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        moved = jnp.float32(2.0 * WIDER_MM)  # the largest movement, which is twice the mean
        return variants.widen_ventricles(key, image, moved, spacing, CENTRE_MM), brain

    def sliced(_: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        return variants.less_resolved(image, brain, 2, slices, 0.0, spacing), brain

    def blurred(_: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        return variants.less_resolved(image, brain, 2, 0.0, blur, spacing), brain

    def cut(key: jax.Array, image: Volume, brain: Volume) -> tuple[Volume, Volume]:
        return variants.cut_mask(key, image, brain, jnp.float32(CUT_MM), spacing)

    return {
        'as they are': Change(lambda _, image, brain: (image, brain), False),
        f'shading of {LOG_SHADING}': Change(shaded, True),
        'darker cerebellum': Change(fallen, False),
        f'ventricles + {WIDER_MM:.0f} mm': Change(wider, True),
        f'slices of {slices:g} mm': Change(sliced, False),
        f'blur of {blur:g} mm': Change(blurred, False),
        f'brain mask up to {CUT_MM:.0f} mm off': Change(cut, True),
    }


def measure(
    model: Path, scans: Sequence[str], draws: int, rule: str = 'dice', bias_field: str = 'auto'
) -> dict[str, Any]:
    """Mark changed healthy scans, and print the table.

    Args:
        model: a run's folder or a package, with its thresholds.
        scans: files and folders of healthy scans; those that cannot be used are named and left out.
        draws: of each random change for each scan.
        rule: of the threshold, see `runs.thresholds`.
        bias_field: whether shading is divided out, one of `bias_field.CHOICES`.

    Returns:
        `model`, `rule`, `threshold`, `bias_field`, and by row: `median`, `90` (percentile) and
        `most` of the ml marked, the `most` ml within the `ventricles` (as wide as they can become),
        `draws`, the number of all these, and `scans`: {name: ml of each draw}.

    Raises:
        UserError: a model that cannot be used, or no scan that can.
    """
    run = load_run(model)
    if run.method.needs_mask:
        raise UserError(
            f'{model}: {run.config.method} needs a mask of the lesion, so it marks none'
        )
    threshold = thresholds.load(run, rule)
    detector = Detector(run, thresholds.load_choice(run)).with_batch(1)
    cases = list(_healthy(run, scans))
    if not cases:
        raise UserError(f'--healthy: no scan in {", ".join(scans)} can be used, see above')
    spacing, grid = detector.spacing, ModelGrid(run.grid.shape, run.grid.spacing)
    near = np.asarray(from_ventricles(run.grid.shape, spacing, CENTRE_MM)[0])
    ventricles = near < WALL_MM + 2.0 * WIDER_MM
    table: dict[str, Any] = {'model': model.name, 'rule': rule, 'threshold': threshold}
    table['bias_field'] = bias_field
    TABLE.print_head(run.name)
    for name, change in changes_of(spacing).items():
        made_by, found = jax.jit(change.made), {}
        every = list(itertools.product(range(len(cases)), range(draws if change.is_random else 1)))
        for number, draw in tqdm(every, name, leave=False):
            key = jax.random.fold_in(jax.random.key(draw), number)
            one = _changed(made_by, cases[number], key, grid.affine, bias_field)
            made = detector.detect([one]).maps[0]
            inside = dataclasses.replace(one, brain=np.asarray(one.brain) * ventricles)
            marked = [marked_ml(made, case, threshold) for case in (one, inside)]
            found.setdefault(one.name, []).append(marked)
        table[name] = _row(found)
        TABLE.print_row(name, table[name])
    return table


def _healthy(run: Run, scans: Sequence[str]) -> Iterator[Subject]:
    contrasts = trained_contrasts(run.config)
    given = given_scans(scans, NOWHERE, contrasts=contrasts)
    for line in (*given.failures, *counted(len(given.scans), given.left_out)):
        cli.tell(line)
    cohort, grid = run.config.cohort, ModelGrid(run.grid.shape, run.grid.spacing)
    registration = 'affine' if cohort.name == 'template' else cohort.registration
    for path in tqdm(given.scans, 'reading', leave=False):
        try:
            made = preprocess(
                load_volume(path), grid, registration=registration, contrasts=contrasts
            )
        except UserError as error:
            cli.tell(f'left out: {error}')
            continue
        for warning in made.warnings:
            cli.tell(f'{path}: {warning}')
        if made.brain.any():
            yield Subject(str(path), made.image, made.brain, None, None, made.affine)
        else:
            cli.tell(f"left out: {path}: no brain on the model's grid")


def _changed(
    made_by: Callable, case: Subject, key: jax.Array, grid_affine: np.ndarray, bias_field: str
) -> Subject:
    """A changed scan, with the level of white matter that it had, as `predict` would take it."""
    brain = np.asarray(case.brain, np.float32)
    image, kept = made_by(key, jnp.asarray(case.image), jnp.asarray(brain))
    scan_from_mni = case.affine @ np.linalg.inv(grid_affine)
    even, _ = coil.correct(np.asarray(image), case.affine, scan_from_mni, bias_field)
    return at_level_of(case, np.asarray(image) if even is None else even, np.asarray(kept) > 0)


def _row(found: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The row of a change from the ml marked in all and in the ventricles, by scan and draw."""
    marked, inside = np.concatenate([np.array(draws) for draws in found.values()]).T
    return {
        'draws': len(marked),
        'median': float(np.median(marked)),
        '90': float(np.percentile(marked, 90.0)),
        'most': float(marked.max()),
        'ventricles': float(inside.max()),
        'scans': {name: [round(ml, 2) for ml, _ in draws] for name, draws in found.items()},
    }
