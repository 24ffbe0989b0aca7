"""Methods in the latent space of an autoencoder: the paper's, its rivals and ours.

    fluidjax train --config=configs/ldm.py:demo --workdir=runs/demo
    fluidjax eval --workdir=runs/demo

The argument after the colon is a comma-separated list of
    SIZE, cohort=, law=, contrast=   as in configs/common.py
    method=NAME                      conddiff by default
Any field can be overridden: --config.seed=1 --config.diffusion.training.steps=2000.

The methods; their scores are in docs/results.md:
    conddiff    conditional latent diffusion, the paper's method (arXiv:2506.10233)
    cldm        the same with the condition concatenated
    icdm        cldm trained on other corruptions than fluid-driven lesions
    ldm         unconditional latent diffusion
    fluidjax    our own: a bridge between the latents of the diseased and the healthy scan, then a
                head that gives the probability of a lesion
A training at the size of the demo takes some ten minutes on 2 CPU cores.

At the paper's size conddiff samples as published, from a scan noised to step 250 of 1000. That
keeps large lesions (docs/results.md, "Ablations"); sampling from pure noise does not:
--config.diffusion.process.start_step=1000.
"""

from ml_collections import ConfigDict

from configs import common, restoration, sizes
from fluidjax.base.settings import parse_argument

CHOICES = common.CHOICES | {'method': ('conddiff', 'ldm', 'cldm', 'icdm', 'fluidjax')}
PUBLISHED_CONDITION = {
    'conddiff': 'vector',
    'ldm': 'none',
    'cldm': 'concat',
    'icdm': 'concat',
    'fluidjax': 'both',
}
# At 160^3 nearly all of a step is encoding, so latents are used for five steps; in two parts the
# batch fits one GPU of 80 GB (docs/performance.md).
POOLED = {'reuse': 5, 'pool': 16, 'reduce_dtype': 'bfloat16', 'accumulate': 2}
# As for fluidjax, so that both methods are given the same of the scan.
SMALL_CONDITION = PUBLISHED_CONDITION | {'conddiff': 'both'}


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size, a cohort and a method."""
    chosen = parse_argument(argument, CHOICES)
    config = common.common(chosen['method'], chosen)
    config.autoencoder = _autoencoder(config.size)
    if config.method == 'fluidjax':
        config.bridge = _bridge(config.size)
    else:
        config.diffusion = _diffusion(config.method, config.size)
    if config.method not in common.WITHOUT_HEAD:
        config.restoration = restoration.section('regression', config.size)
        config.head = common.head(config.size)
    if config.method == 'icdm':
        config.corruptions = ConfigDict(
            {
                'radius_mm': (8.0, 30.0),
                'diseased_probability': 0.8,
                'shift_mm': 20.0,
                'intensity': (0.2, 0.6),
                'strength': (0.3, 1.0),
                'solver_steps': 60,
                'tasks': ('blend', 'sink', 'source', 'intensity'),
            }
        )
    if config.size != 'paper':
        config.detect.reference = 'autoencoder'
    if config.method == 'fluidjax':
        config.detect.update({'reference': 'both', 'mirror': True, 'head': 'product'})
        if config.size == 'demo':
            config.detect.map.smoothing_mm = 5.0  # the mean of two maps needs less smoothing
        if config.size == 'paper':  # the published map is made for another counterpart
            config.detect.map.update(common.PLAIN_MAP | {'smoothing_mm': 3.0})
    sizes.adapt(config)
    if 'restoration' in config:
        config.restoration.training.steps = 0  # no regression beside it
    if 'head' in config and config.method != 'fluidjax':
        config.head.training.steps = 0  # no head, as published
    return config


def _autoencoder(size: str) -> ConfigDict:
    section = ConfigDict(
        {
            'network': {
                'channels': (64, 128, 128, 128),
                'num_res_blocks': 2,
                'latent_channels': 3,
                'norm_num_groups': 32,
                'patch': 1,
                'linear_path': False,
                'dtype': 'bfloat16',
                'remat': True,
            },
            'losses': {
                'kl': 1e-8,
                'adversarial': 1e-3,
                'discriminator_features': 96,
                'discriminator_layers': 3,
                'reconstruction': 'squared',
                'gan': 'least_squares',
                'perceptual': 0.0,
                'perceptual_weights': (),
                'perceptual_share': 0.25,
            },
            'training': common.training(
                100_000,
                8,
                common.optimizer(5e-5, clip_norm=0.0),
                ema_decay=0.999,
                log_every=50,
                checkpoint_every=500,
                validate_every=500,
                epochs=25,
                patience=3,
                accumulate=2,  # fits one GPU of 80 GB (`fluidjax bench memory`)
            ),
        }
    )
    if size == 'paper':
        return section
    section.network.update(
        {
            'channels': (48,),
            'latent_channels': 16,
            'norm_num_groups': 8,
            'patch': 4,
            'linear_path': True,
            'num_res_blocks': 1,
            'dtype': 'float32',
            'remat': False,
        }
    )
    section.losses.update({'discriminator_features': 8, 'discriminator_layers': 2})
    section.training = common.demo_training(
        160, 3e-4, ema_decay=0.95, log_every=20, checkpoint_every=80
    )
    section.training.optimizer.update({'warmup_steps': 20, 'b2': 0.999})
    if size == 'smoke':
        section.network.update({'channels': (8,), 'latent_channels': 4})
        section.losses.update({'discriminator_features': 4, 'discriminator_layers': 1})
        section.training.update(common.SMOKE_TRAINING)
    return section


def _unet(condition: str, size: str) -> dict:
    if size == 'paper':
        return {
            'channels': (128, 256, 256),
            'num_res_blocks': 1,
            'attention_levels': (False, False, True),
            'num_head_channels': 256,
            'norm_num_groups': 32,
            'condition': condition,
            'position_bias': False,
            'dtype': 'bfloat16',
            'remat': False,
        }
    small = size == 'smoke'
    return {
        'channels': (8,) if small else (32, 64),
        'num_res_blocks': 1,
        'attention_levels': (False,) if small else (False, True),
        'num_head_channels': 8 if small else 32,
        'norm_num_groups': 8,
        'condition': condition,
        'position_bias': True,
        'dtype': 'float32',
        'remat': False,
    }


def _diffusion(method: str, size: str) -> ConfigDict:
    section = ConfigDict(
        {
            'network': _unet(PUBLISHED_CONDITION[method], size),
            'process': {
                'num_steps': 1000,
                'prediction': 'eps',
                'learned_variance': True,
                'centre_latents': False,
                'time_bias': 1.0,
                'min_snr': 0.0,
                'lesion_weight': 0.0,
                'start_step': 250,
                'start_steps': (),
                'sampler': 'ddpm',
                'sampler_steps': 250,
                'num_samples': 1,
            },
            'training': common.training(400_000, 16, common.optimizer(1e-4), **POOLED),
        }
    )
    if size == 'paper':
        return section
    section.network.condition = SMALL_CONDITION[method]
    section.process.update(
        {
            'prediction': 'v',
            'learned_variance': False,
            'centre_latents': True,
            'time_bias': 4.0,
            'lesion_weight': 12.0,
            'start_step': 1000,
            'sampler': 'one_step',
            'sampler_steps': 1,
        }
    )
    if method == 'ldm':
        # It is not conditioned on the scan, so it must start from a scan that is still visible.
        section.process.update(
            {
                'time_bias': 1.0,
                'lesion_weight': 0.0,  # it never sees a lesion
                'start_step': 400,
                'sampler': 'ddim',
                'sampler_steps': 10,
            }
        )
    section.training = common.demo_training(1300, 2e-3)
    if size == 'smoke':
        section.process.update({'sampler': 'ddim', 'sampler_steps': 2})
        section.training.update(common.SMOKE_TRAINING)
    return section


def _bridge(size: str) -> ConfigDict:
    section = ConfigDict(
        {
            'network': _unet('both', size) | {'position_bias': True},
            'process': {
                'noise': 0.0,
                # Sampling starts at time 1, so most of the training is near it.
                'time_bias': 4.0,
                'error': 'squared',
                'centre_latents': True,
                'lesion_weight': 12.0,
                'sampler_steps': 2,
                'num_samples': 1,
            },
            'training': common.training(
                400_000, 16, common.optimizer(1e-4, clip_norm=1.0), **POOLED
            ),
        }
    )
    if size == 'paper':
        return section
    section.process.sampler_steps = 2 if size == 'smoke' else 1
    section.training = common.demo_training(1300, 2e-3)
    if size == 'smoke':
        section.training.update(common.SMOKE_TRAINING)
    return section
