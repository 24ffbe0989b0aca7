"""The networks: autoencoder, patch discriminator, diffusion U-Net and its condition encoders."""

from fluidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from fluidjax.models.discriminator import Discriminator
from fluidjax.models.linear_code import PatchBasis, principal_components, with_linear_start
from fluidjax.models.unet import UNet, UNetConfig

__all__ = [
    'Autoencoder',
    'AutoencoderConfig',
    'Discriminator',
    'PatchBasis',
    'UNet',
    'UNetConfig',
    'principal_components',
    'with_linear_start',
]
