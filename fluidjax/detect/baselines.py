"""Mean and standard deviation of the training brains, for the rows without training.

The residual to that mean, and the same in units of that standard deviation (a z-score), are hard to
beat with few training steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fluidjax.base.errors import UserError

LEAST_SPREAD = 0.05  # where all training brains are equal (the background), a z-score has no unit


def mean_and_spread(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, at least `LEAST_SPREAD`, (x, y, z) float32, of training images.

    Raises:
      UserError: there are none, or they differ in shape.
    """
    total, squares, count = None, None, 0
    for image in images:
        image = np.asarray(image, np.float64)
        if total is not None and total.shape != image.shape:
            raise UserError(
                f'mean brain: training image {count} has shape {image.shape}, the ones before it '
                f'{total.shape}; bring all onto one grid first'
            )
        total = image if total is None else total + image
        squares = image**2 if squares is None else squares + image**2
        count += 1
    if total is None:
        raise UserError('mean brain: there are no training images; check the training split')
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, LEAST_SPREAD**2))
    return mean.astype(np.float32), spread.astype(np.float32)
