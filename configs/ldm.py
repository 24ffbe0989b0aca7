"""The paper's system, both stages: conditional latent diffusion (arXiv:2506.10233).

    python -m fluidjax.main --config=configs/ldm.py:demo --workdir=runs/demo
    python -m fluidjax.eval --workdir=runs/demo

After the colon, comma-separated, any of
    paper | demo | smoke      size: 160^3 at 1 mm, 40x48x40 at 4 mm (minutes on a CPU), or seconds
    cohort=template|nifti     the embedded cohort, or your own scans (set config.cohort.data_dir)
    method=conddiff|ldm|cldm  the paper's method, its unconditional or its concatenating rival
Any field can be overridden: --config.seed=1 --config.diffusion.training.steps=2000.
"""

from ml_collections import ConfigDict

from fluidjax.config import parse_argument

CHOICES = {
    'size': ('paper', 'demo', 'smoke'),
    'cohort': ('template', 'nifti'),
    'method': ('conddiff', 'ldm', 'cldm'),
}
PUBLISHED_CONDITION = {'conddiff': 'vector', 'ldm': 'none', 'cldm': 'concat'}
SMALL_CONDITION = PUBLISHED_CONDITION | {'conddiff': 'spatial'}


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size, a cohort and a method."""
    chosen = parse_argument(argument, CHOICES)
    config = _paper(chosen['method'])
    config.cohort.name = chosen['cohort']
    config.size = chosen['size']
    if chosen['size'] != 'paper':
        _shrink_to_demo(config)
    if chosen['size'] == 'smoke':
        _shrink_to_smoke(config)
    return config


def _optimizer(learning_rate: float, **others) -> ConfigDict:
    defaults = {'warmup_steps': 0, 'decay': 'constant', 'weight_decay': 0.0, 'clip_norm': 0.1,
                'b2': 0.999}
    return ConfigDict({'learning_rate': learning_rate, **defaults, **others})


def _paper(method: str) -> ConfigDict:
    """METHOD.md's published numbers; where the code and the paper differ, what the code meant."""
    config = ConfigDict({'seed': 0, 'method': method, 'size': 'paper'})
    config.cohort = ConfigDict({
        'name': 'template', 'data_dir': '', 'test_dir': '', 'lesion_dir': '',
        'registration': 'affine', 'store': '',
    })
    config.augment = ConfigDict({
        'flip_probability': 0.5, 'rotation_degrees': 15.0, 'scaling': 0.2, 'shear': 0.2,
        'displacement_mm': 4.0, 'control_spacing_mm': 32.0, 'gamma': 0.1, 'bias': 0.1,
        'noise': 0.02,
    })
    config.fluid = ConfigDict({
        'perlin_periods': (2, 2, 2), 'velocity_scale': 500.0, 'transport_time': (0.1, 0.9),
        'border_mm': 0.0, 'lesion_count': (1, 1), 'seed_percentiles': (90.0, 99.6),
        'size_ml': (0.0, 0.0), 'bank_probability': 0.5, 'bank_shift_mm': 8.0,
        'bank_rotation_degrees': 15.0, 'bank_scale': (0.8, 1.25), 'inside_share': 0.6,
        'diseased_probability': 0.8, 'threshold': 0.2, 'painting': 'paper',
        'bright_probability': 0.0, 'strength': (1.0, 1.0), 'texture_mm': 0.0, 'mass_effect': 0.0,
        'scheme': 'flow_map',
    })
    config.autoencoder = ConfigDict({
        'network': {'channels': (64, 128, 128, 128), 'num_res_blocks': 2, 'latent_channels': 3,
                    'norm_num_groups': 32, 'patch': 1, 'linear_path': False,
                    'dtype': 'bfloat16', 'remat': True},
        'losses': {'kl': 1e-8, 'adversarial': 1e-3, 'discriminator_features': 96,
                   'discriminator_layers': 3, 'reconstruction': 'squared', 'gan': 'least_squares',
                   'perceptual': 0.0, 'perceptual_weights': (), 'perceptual_share': 0.25},
        'training': {'steps': 100_000, 'batch_size': 8,
                     'optimizer': _optimizer(5e-5, clip_norm=0.0), 'ema_decay': 0.999,
                     'log_every': 50, 'checkpoint_every': 1000},
    })
    config.diffusion = ConfigDict({
        'network': {'channels': (128, 256, 256), 'num_res_blocks': 1,
                    'attention_levels': (False, False, True), 'num_head_channels': 256,
                    'norm_num_groups': 32, 'condition': PUBLISHED_CONDITION[method],
                    'position_bias': False, 'dtype': 'bfloat16', 'remat': False},
        'process': {'num_steps': 1000, 'prediction': 'eps', 'learned_variance': True,
                    'centre_latents': False, 'time_bias': 1.0, 'min_snr': 0.0, 'start_step': 250,
                    'start_steps': (), 'sampler': 'ddpm', 'sampler_steps': 250, 'num_samples': 1},
        'training': {'steps': 400_000, 'batch_size': 16, 'optimizer': _optimizer(1e-4),
                     'ema_decay': 0.9999, 'log_every': 100, 'checkpoint_every': 2000},
    })
    config.detect = ConfigDict({
        'reference': 'scan', 'batch_size': 1,
        'map': {'smoothing_mm': 0.0, 'erosion_mm': 6.0, 'max_shift_voxels': 2, 'sign': 'absolute',
                'normalise': False, 'median_voxels': 5},
    })
    return config


def _shrink_to_demo(config: ConfigDict) -> None:
    """The same rooms at 4 mm: minutes on two CPU cores. README, "The demo", says what differs."""
    config.augment.update({'bias': 0.05})
    if config.cohort.name == 'template':
        # Each of its subjects is a deformation already; a folder of few scans needs more.
        config.augment.update({'rotation_degrees': 0.0, 'scaling': 0.0, 'shear': 0.0,
                               'displacement_mm': 0.0})
    else:
        config.augment.update({'rotation_degrees': 4.0, 'scaling': 0.05, 'shear': 0.03,
                               'displacement_mm': 3.0})
    config.fluid.seed_percentiles = (96.0, 99.9)
    config.autoencoder.network.update({'channels': (48,), 'latent_channels': 16,
                                       'norm_num_groups': 8, 'patch': 4, 'linear_path': True,
                                       'num_res_blocks': 1, 'dtype': 'float32',
                                       'remat': False})
    config.autoencoder.losses.update({'discriminator_features': 8, 'discriminator_layers': 2})
    config.autoencoder.training.update({'steps': 160, 'batch_size': 4, 'ema_decay': 0.95,
                                        'log_every': 20, 'checkpoint_every': 80})
    config.autoencoder.training.optimizer.update({'learning_rate': 3e-4, 'warmup_steps': 20,
                                                  'decay': 'cosine', 'clip_norm': 1.0})
    config.diffusion.network.update({'channels': (32, 64), 'attention_levels': (False, True),
                                     'num_head_channels': 32, 'norm_num_groups': 8,
                                     'condition': SMALL_CONDITION[config.method],
                                     'position_bias': True, 'dtype': 'float32'})
    config.diffusion.process.update({'prediction': 'v', 'learned_variance': False,
                                     'centre_latents': True, 'time_bias': 4.0, 'start_step': 1000,
                                     'sampler': 'one_step', 'sampler_steps': 1})
    if config.method == 'ldm':
        # Told nothing of the scan, it must start from a scan that is still to be seen.
        config.diffusion.process.update({'time_bias': 1.0, 'start_step': 400, 'sampler': 'ddim',
                                         'sampler_steps': 10})
    config.diffusion.training.update({'steps': 1300, 'batch_size': 4, 'ema_decay': 0.99,
                                      'log_every': 50, 'checkpoint_every': 200})
    config.diffusion.training.optimizer.update({'learning_rate': 2e-3, 'warmup_steps': 40,
                                                'decay': 'cosine', 'clip_norm': 1.0, 'b2': 0.99})
    config.detect.update({'reference': 'autoencoder', 'batch_size': 4})
    config.detect.map.update({'smoothing_mm': 10.0, 'erosion_mm': 0.0, 'max_shift_voxels': 0,
                              'median_voxels': 0})


def _shrink_to_smoke(config: ConfigDict) -> None:
    """Every room in seconds, for tests and for trying a command; its scores mean nothing."""
    config.autoencoder.network.update({'channels': (8,), 'latent_channels': 4})
    config.autoencoder.losses.update({'discriminator_features': 4, 'discriminator_layers': 1})
    config.autoencoder.training.update({'steps': 6, 'batch_size': 2, 'log_every': 2,
                                        'checkpoint_every': 3})
    config.diffusion.network.update({'channels': (8, 16), 'num_head_channels': 8})
    config.diffusion.training.update({'steps': 6, 'batch_size': 2, 'log_every': 2,
                                      'checkpoint_every': 3})
    config.diffusion.process.update({'sampler': 'ddim', 'sampler_steps': 2})
    config.detect.map.smoothing_mm = 12.0
