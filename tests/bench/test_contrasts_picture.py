"""The picture of synthesised scans beside real ones."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from configs import ldm
from data_pipelines import mni_template
from data_pipelines.grids import ModelGrid
from fluidjax.base.errors import UserError
from fluidjax.bench import contrasts


@pytest.mark.slow
def test_every_contrast_has_a_row_with_its_real_scans(store, tmp_path, capsys):
    grid = ModelGrid((40, 48, 40), (4.0, 4.0, 4.0))
    maps = mni_template.on_grid(grid)
    bright = np.where(maps.brain > 0.5, 900 * maps.csf + 400 * maps.gm + 200 * maps.wm + 10, 0.0)
    nib.save(nib.Nifti1Image(bright.astype(np.float32), grid.affine), tmp_path / 'a_T2w.nii')
    config = ldm.get_config('smoke,contrast=any')
    config.cohort.store = str(store)
    counts = contrasts.draw(config, [str(tmp_path / 'a_T2w.nii')], tmp_path / 'picture.png')
    assert counts == {'t1w': 0, 't2w': 1, 'flair': 0, 't1ce': 0, 'random': 0}
    picture = np.asarray(
        Image.open(io.BytesIO((tmp_path / 'picture.png').read_bytes())).convert('L')
    )
    height, width = picture.shape[0] // 5, picture.shape[1] // 4
    seen = [[picture[r * height :][:height, c * width :][:, :width].std() > 20 for c in range(4)]
            for r in range(5)]  # fmt: skip
    assert [row[:3] for row in seen] == [[True] * 3] * 5
    assert [row[3] for row in seen] == [False, True, False, False, False]
    with pytest.raises(UserError, match='needs a configuration with contrast='):
        contrasts.draw(ldm.get_config('smoke'), [], tmp_path / 'no.png')
