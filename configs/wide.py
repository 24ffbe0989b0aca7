"""What training shows for use on scans of others (`law=wide`), instead of the published lesions.

    fluidjax train --config=configs/ldm.py:2mm,method=fluidjax,cohort=nifti,law=wide ...

The fields are those of `fluidjax.fluid.wide.WideSettings` (lesions) and
`fluidjax.methods.variants.VariantSettings` (healthy scans); their docstrings explain them.
Recipes and thresholds are chosen on the lesions of all methods, as without it.
"""

from ml_collections import ConfigDict


def widen(config: ConfigDict) -> None:
    """Add the sections `wide` and `variants`."""
    config.wide = ConfigDict(
        {
            'count': (1, 8),
            'size_ml': (0.05, 150.0),
            'strength': (0.1, 1.0),
            'bright': 0.1,
            'alike': 0.1,
            'core': 0.25,
            'rim': 0.2,
        }
    )
    config.variants = ConfigDict(
        {
            'share': 0.5,
            'ventricle_mm': 12.0,
            'sulci_mm': 1.5,
            'slice_mm': 6.0,
            'shading': 0.35,
            'fall': 0.7,
            'mask_mm': 5.0,
            'blur_mm': 4.0,
        }
    )
