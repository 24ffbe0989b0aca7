"""Diffusion: the noise schedule as a value, training losses, samplers over a denoise function."""

from fluidjax.diffusion.losses import denoising_loss
from fluidjax.diffusion.samplers import ddim, ddpm, dpmpp, ensemble, one_step
from fluidjax.diffusion.schedule import Schedule, linear_schedule, q_sample, respace

__all__ = [
    'Schedule',
    'ddim',
    'ddpm',
    'denoising_loss',
    'dpmpp',
    'ensemble',
    'linear_schedule',
    'one_step',
    'q_sample',
    'respace',
]
