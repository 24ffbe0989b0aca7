"""Training on scans that are made from tissue fractions, in one contrast or in any.

    fluidjax train --config=configs/ldm.py:demo,method=fluidjax,contrast=any --workdir=runs/any
    fluidjax train --config=configs/ldm.py:2mm,method=fluidjax,cohort=labels,contrast=flair ...

Fractions are those of the embedded cohort, of label maps (cohort=labels), or estimated from T1w
scans of your own (cohort=nifti). The fields are those of
`fluidjax.synthesis.generate.SynthesisSettings`, whose docstring explains them.
"""

from ml_collections import ConfigDict

# Contrasts of a training; `random` is one without any order of the tissues.
MADE = {
    **{name: (name,) for name in ('t1w', 't2w', 'flair', 't1ce')},
    'any': ('t1w', 't2w', 'flair', 't1ce', 'random'),
}
NAMES = tuple(MADE)


def synthesise(config: ConfigDict, contrast: str) -> None:
    """Add the section `synthesis`."""
    config.synthesis = ConfigDict(
        {
            'contrasts': MADE[contrast],
            'spread': 0.1,
            'texture_mm': 10.0,
            'sliced': 0.25,
            'slice_mm': 6.0,
            'cut': 0.1,
            'cut_mm': 30.0,
        }
    )
