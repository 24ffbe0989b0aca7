"""The brain in a scan: a mask of the user's, or found by a tool on PATH or with the atlas."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines import atlas_extraction, head_mask, orientation
from data_pipelines.mask_on_scan import on_voxels_of
from data_pipelines.volume_io import Volume, load_volume, save_volume
from fluidjax.base.errors import UserError

METHODS = ('auto', 'none', 'atlas', 'synthstrip', 'hd-bet')
TOOLS = {'synthstrip': 'mri_synthstrip', 'hd-bet': 'hd-bet'}
TOOL_TIMEOUT_S = 3600
# Limits for a brain found with the atlas. Measured on two heads: correlation with the template
# 0.49 and 0.68, Dice 0.96.
LEAST_AGREEMENT, LEAST_OVERLAP = 0.25, 0.85
VOLUME_RANGE_ML = (600.0, 2200.0)
ADVICE = (
    'skull-strip it first, or give its brain mask (--brain of predict), or install SynthStrip '
    '(mri_synthstrip) or HD-BET'
)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The brain of a scan.

    Attributes:
      brain: (x, y, z) bool on the scan's voxels; None if the scan is skull-stripped.
      method: 'none', 'given', 'atlas', 'synthstrip' or 'hd-bet'.
      whole_head: whether the scan shows a skull.
      warnings: sentences about the user's mask, or a tool that failed.
    """

    brain: np.ndarray | None
    method: str
    whole_head: bool
    warnings: tuple[str, ...] = ()


def check_method(method: str) -> None:
    """Raise a UserError unless the method is one of METHODS."""
    if method not in METHODS:
        raise UserError(
            f"brain extraction '{method}' is unknown; choose one of " + ', '.join(METHODS)
        )


def extract(scan: Volume, method: str = 'auto', brain: Volume | None = None) -> Extraction:
    """Find the brain of a scan.

    Args:
      scan: a whole head, or a brain whose background is one constant.
      method: 'auto': nothing for a skull-stripped scan, else the best that is installed, and the
        atlas if that fails; 'none': the scan is skull-stripped; 'atlas', 'synthstrip', 'hd-bet':
        that one for any scan.
      brain: the user's mask, any value > 0 is brain; replaces `method`. Its voxels are those of
        the scan, or it is laid on them by its header (`mask_on_scan`).

    Raises:
      UserError: unknown method, a mask that lies elsewhere or is empty, a tool that is missing or
        fails, or a result of the atlas that cannot be trusted.
    """
    check_method(method)
    coarse = head_mask.coarse_head(scan)
    whole_head = head_mask.is_whole_head(coarse)
    if brain is not None:
        brain = on_voxels_of(brain, scan, 'brain mask')
        return Extraction(_given(brain), 'given', whole_head, brain.warnings)
    if method == 'auto' and whole_head:
        return _by_best(scan, coarse)
    if method in ('auto', 'none'):
        return Extraction(None, 'none', whole_head)
    mask = _by_atlas(scan, coarse) if method == 'atlas' else _by_tool(scan, method)
    return Extraction(mask, method, whole_head)


def _by_best(head: Volume, coarse: head_mask.Coarse | None) -> Extraction:
    """The brain of a whole head by the first tool that is installed, else by the atlas."""
    tool = next((name for name, program in TOOLS.items() if shutil.which(program)), None)
    if tool is None:
        return Extraction(_by_atlas(head, coarse), 'atlas', True)
    try:
        return Extraction(_by_tool(head, tool), tool, True)
    except UserError as error:
        failure = str(error).removeprefix(f'{head.path}: ')
    try:
        warning = f'the brain was found with the atlas, because {failure}'
        return Extraction(_by_atlas(head, coarse), 'atlas', True, (warning,))
    except UserError as error:
        raise UserError(f'{error}; before, {failure}') from error


def _given(brain: Volume) -> np.ndarray:
    mask = brain.data > 0
    if not mask.any() or mask.all():
        what = 'marks every voxel' if mask.all() else 'is empty'
        raise UserError(
            f'{brain.path}: brain mask {what}; give one that is 1 in the brain and 0 elsewhere'
        )
    return mask


def _by_atlas(scan: Volume, coarse: head_mask.Coarse | None) -> np.ndarray:
    result = None if coarse is None else atlas_extraction.find_brain(scan, coarse)
    doubt = 'no head was found' if result is None else _doubt(result)
    if doubt:
        advice = (coarse and _other_axes(scan, coarse)) or ADVICE
        raise UserError(
            f'{scan.path}: the brain could not be separated from the head ({doubt}); {advice}'
        )
    return result.brain


def _other_axes(scan: Volume, coarse: head_mask.Coarse) -> str:
    """What is wrong with the axes of a head whose brain is found in another orientation, or ''."""
    rotation = atlas_extraction.likeliest_rotation(coarse)
    turned = atlas_extraction.turned
    result = atlas_extraction.find_brain(turned(scan, rotation), turned(coarse, rotation))
    if result is None or _doubt(result):
        return ''
    stored = scan.affine if scan.original is None else scan.original.affine
    return f'{orientation.axes(stored, rotation)}; mend it'


def _doubt(result: atlas_extraction.AtlasBrain) -> str:
    """Why the brain found with the atlas cannot be trusted; '' if it can."""
    low, high = VOLUME_RANGE_ML
    if not low <= result.volume_ml <= high:
        return f'the piece found has {result.volume_ml:.0f} ml'
    if not result.agreement >= LEAST_AGREEMENT:
        return f'it resembles the T1w atlas too little: correlation {result.agreement:.2f}'
    if result.overlap < LEAST_OVERLAP:
        return f'it overlaps the MNI152 brain by only {result.overlap:.2f}'
    return ''


def _by_tool(scan: Volume, method: str) -> np.ndarray:
    """The mask that a program on PATH computes from the scan."""
    program = shutil.which(TOOLS[method])
    if program is None:
        raise UserError(
            f"brain extraction '{method}': {TOOLS[method]} is not on PATH; install it, "
            "or choose 'atlas', or skull-strip the scan first"
        )
    with tempfile.TemporaryDirectory() as folder:
        head, stripped = Path(folder, 'head.nii.gz'), Path(folder, 'brain.nii.gz')
        save_volume(head, scan.data, scan.affine)
        if method == 'synthstrip':
            mask = Path(folder, 'mask.nii.gz')
            commands = [[program, '-i', str(head), '-m', str(mask)]]
        else:
            mask = stripped  # zero outside the brain
            command = [program, '-i', str(head), '-o', str(stripped)]
            commands = [command, [*command, '-device', 'cpu']]  # its default needs a GPU
        _call(commands, scan.path)
        if not mask.is_file():
            raise UserError(
                f'{scan.path}: {TOOLS[method]} wrote no result; try it by hand, or '
                'skull-strip it first'
            )
        return load_volume(mask).data != 0


def _call(commands: list[list[str]], path: str) -> None:
    """Run commands until one does not fail. UserError if all do, with what the last one said."""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)
            failed, said = done.returncode != 0, done.stderr.strip() or done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            failed, said = True, str(error)
        if not failed:
            return
    last = said.splitlines()[-1] if said else 'no message'
    raise UserError(
        f'{path}: {Path(command[0]).name} failed: {last}; try it by hand, or skull-strip it first'
    )
