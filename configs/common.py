"""Sections that all methods share: the cohort, augmentation, lesions, and the anomaly map.

The argument after the colon of `--config=configs/FILE.py:ARGUMENT` is a comma-separated list of
    SIZE                      paper (160^3 at 1 mm, the published networks), 1mm, 1.5mm, 2mm
                              (configs/sizes.py), demo or 4mm (minutes on a CPU), or smoke (16^3 at
                              12 mm; seconds, for tests)
    cohort=template|nifti|labels   the embedded cohort, your own scans (set config.cohort.data_dir),
                              or a folder of FreeSurfer's label maps, from which scans are made
    law=published|wide        what training shows: flowing lesions as published, or lesions of many
                              kinds in healthy scans of many kinds, for use on scans of others
    contrast=scans|t1w|t2w|flair|t1ce|any   that of the scans, or scans made in a contrast from
                              tissue fractions, with law=wide (configs/contrasts.py)
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import contrasts, fluid, sizes, wide
from fluidjax.base.settings import SYNONYMS

CHOICES = {
    'size': sizes.NAMES,
    'cohort': ('template', 'nifti', 'labels'),
    'law': ('published', 'wide'),
    'contrast': ('scans', *contrasts.NAMES),
}
# Methods without a head: not given the scan as a condition, or given the mask of its lesion.
WITHOUT_HEAD = ('ldm', 'vae', 'inpainting')
# An anomaly map without the published erosion, shifts and median filter.
PLAIN_MAP = {'erosion_mm': 0.0, 'max_shift_voxels': 0, 'median_voxels': 0}
# Eight samples, so that tests on eight simulated devices can share the batch.
SMOKE_TRAINING = {'steps': 6, 'batch_size': 8, 'log_every': 2, 'checkpoint_every': 3}


def common(method: str, chosen: Mapping[str, str]) -> ConfigDict:
    """The shared sections.

    At the paper's size these are the settings of arXiv:2506.10233; where the paper and its code
    differ, those that the code intends.

    Args:
        method: its name.
        chosen: one of each of `CHOICES`.
    """
    size, cohort = SYNONYMS.get(chosen['size'], chosen['size']), chosen['cohort']
    config = ConfigDict({'seed': 0, 'method': method, 'size': size})
    # Arrangement of 3-D convolutions: 'auto', 'direct' (XLA's own) or 'taps' (a sum of 2-D ones).
    config.convolution = 'auto'
    # A run's folder or a model package whose parameters the training starts from, or several with
    # commas between, for the mean of their parameters; '': random ones.
    config.start = ''
    # 0: new pairs at every step; n: n fixed pairs per scan, as in the published code.
    config.stored_pairs = 0
    # embedded: number of subjects of the embedded cohort to train on in addition to your own scans.
    # labels: where data_dir holds label maps: 'freesurfer', or a JSON file of other labels.
    config.cohort = ConfigDict(
        {
            'name': 'template' if cohort == 'template' else 'nifti',
            'data_dir': '',
            'test_dir': '',
            'lesion_dir': '',
            'registration': 'affine',
            'store': '',
            'embedded': 0,
            'labels': 'freesurfer' if cohort == 'labels' else '',
        }
    )
    config.augment = ConfigDict(
        {
            'flip_probability': 0.5,
            'rotation_degrees': 15.0,
            'scaling': 0.2,
            'shear': 0.2,
            'displacement_mm': 4.0,
            'control_spacing_mm': 32.0,
            'gamma': 0.1,
            'bias': 0.1,
            'noise': 0.02,
        }
    )
    config.fluid = fluid.section()
    config.detect = ConfigDict(
        {
            # Choose reference, mirroring, sign, smoothing and unit of the map on validation scans.
            'search': size != 'paper',
            'reference': 'scan',
            'mirror': False,
            'batch_size': 1,
            'validation_scans': 0,  # for recipe and thresholds, the first so many; 0: all
            'checkpoint': 'last',
            'map': {
                'smoothing_mm': 0.0,
                'erosion_mm': 6.0,
                'max_shift_voxels': 2,
                'sign': 'absolute',
                'normalise': False,
                'median_voxels': 5,
            },
        }
    )
    if method not in WITHOUT_HEAD:
        config.detect.head = 'auto'  # 'product' where a head is trained, else 'none'
    if size != 'paper':
        _shrink(config)
    if chosen['law'] == 'wide' or chosen['contrast'] != 'scans':
        wide.widen(config)
    if chosen['contrast'] != 'scans':
        contrasts.synthesise(config, chosen['contrast'])
    return config


def optimizer(learning_rate: float, **others) -> ConfigDict:
    """AdamW as published: constant learning rate, no weight decay, clipped gradients."""
    published = {
        'warmup_steps': 0,
        'decay': 'constant',
        'weight_decay': 0.0,
        'clip_norm': 0.1,
        'b2': 0.999,
    }
    return ConfigDict({'learning_rate': learning_rate, **published, **others})


def training(steps: int, batch_size: int, rates: ConfigDict, **others) -> ConfigDict:
    """The length of a stage, and how often it writes metrics and checkpoints."""
    usual = {
        'ema_decay': 0.9999,
        'log_every': 100,
        'checkpoint_every': 2000,
        'validate_every': 2000,
        'picture_every': 2000,
        'epochs': 0,
        'patience': 0,
        'accumulate': 1,
        'reuse': 1,
        'pool': 1,
        'reduce_dtype': 'float32',
    }
    return ConfigDict(
        {'steps': steps, 'batch_size': batch_size, 'optimizer': rates, **usual, **others}
    )


def demo_training(steps: int, learning_rate: float, **others) -> ConfigDict:
    """Training for a few minutes on two CPU cores; the learning rate rises and falls."""
    rates = optimizer(learning_rate, warmup_steps=40, decay='cosine', clip_norm=1.0, b2=0.99)
    usual = {
        'ema_decay': 0.99,
        'log_every': 50,
        'checkpoint_every': 200,
        'validate_every': 0,
        'picture_every': 0,
    }
    return training(steps, 4, rates, **(usual | others))


def head(size: str) -> ConfigDict:
    """A head after a method that makes counterparts; without steps there is none."""
    section = ConfigDict(
        {
            'network': {
                'channels': (16, 32, 64),
                'num_res_blocks': 1,
                'norm_num_groups': 8,
                'patch': 2,
                'dtype': 'bfloat16',
                'remat': True,
            },
            'losses': {'dice': 1.0},
            # How its lesions differ from `config.fluid`: also faint ones, which a counterpart keeps
            # in part, and which the head can learn to see. The wide law does not use it.
            'lesions': {'strength': (0.4, 1.0)},
            # How its scans differ from `config.augment`: more, so that counterparts are wrong in
            # the ways in which they are wrong for scans unlike those of the training, and the head
            # learns not to mark what is only unusual.
            'augment': {'gamma': 0.2, 'bias': 0.15, 'noise': 0.04},
            'training': training(20_000, 8, optimizer(1e-4, clip_norm=1.0)),
        }
    )
    if size == 'paper':
        return section
    section.network.update({'channels': (16, 32), 'dtype': 'float32', 'remat': False})
    section.training = demo_training(1300, 2e-3)
    if size == 'smoke':
        section.network.channels = (8,)
        section.training.update(SMOKE_TRAINING)
    return section


def _shrink(config: ConfigDict) -> None:
    """Settings at 4 and 12 mm; see docs/results.md, "How the demo differs from the paper"."""
    config.augment.update({'bias': 0.05})
    if config.cohort.name == 'template':
        # Its subjects are deformed already. A folder of few scans needs more augmentation.
        config.augment.update(
            {'rotation_degrees': 0.0, 'scaling': 0.0, 'shear': 0.0, 'displacement_mm': 0.0}
        )
    else:
        config.augment.update(
            {'rotation_degrees': 4.0, 'scaling': 0.05, 'shear': 0.03, 'displacement_mm': 3.0}
        )
    config.fluid.seed_percentiles = (96.0, 99.9)
    config.detect.batch_size = 4
    config.detect.map.update(PLAIN_MAP)
    config.detect.map.smoothing_mm = 12.0 if config.size == 'smoke' else 10.0
