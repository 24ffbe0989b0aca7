"""What a cohort holds of a subject, on disk."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds


def record_features(shape: tuple[int, int, int]) -> tfds.features.FeaturesDict:
    """The record of one subject, the same for every cohort. Arrays are (x, y, z), zlib-packed."""
    volume = lambda dtype: tfds.features.Tensor(shape=shape, dtype=dtype, encoding='zlib')
    return tfds.features.FeaturesDict(
        {
            'name': tfds.features.Text(),
            'image': volume(np.float32),
            'brain': volume(np.uint8),
            'healthy': volume(np.float32),
            'has_healthy': np.bool_,
            'lesion': volume(np.uint8),
            'has_lesion': np.bool_,
            'affine': tfds.features.Tensor(shape=(4, 4), dtype=np.float64),
        }
    )


def record(name, image, brain, affine, lesion=None, healthy=None) -> dict:
    """One subject as `record_features` wants it; an absent lesion or healthy image is all zeros."""
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
