"""The record of one subject, as every cohort's builder writes it; without TensorFlow."""

from __future__ import annotations

import numpy as np


def record(name, image, brain, affine, lesion=None, healthy=None) -> dict:
    """One subject as `template_cohort.record_features` wants it.

    An absent lesion or healthy image is all zeros.
    """
    filled = lambda data, dtype: (
        np.zeros(image.shape, dtype) if data is None else data.astype(dtype)
    )
    return {
        'name': name,
        'image': image.astype(np.float32),
        'brain': brain.astype(np.uint8),
        'healthy': filled(healthy, np.float32),
        'has_healthy': healthy is not None,
        'lesion': filled(lesion, np.uint8),
        'has_lesion': lesion is not None,
        'affine': np.asarray(affine, np.float64),
    }
