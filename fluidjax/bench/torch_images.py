"""The networks of whole volumes in PyTorch, autoencoder and image U-Net; see `torch_layers`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluidjax.bench.torch_layers import (
    EPS,
    Dense,
    Downsample,
    Levels,
    Upsample,
    conv,
    depth_to_space,
    space_to_depth,
)
from fluidjax.models.autoencoder import LINEAR_LOG_VAR, LOG_VAR_RANGE, AutoencoderConfig
from fluidjax.models.image_unet import ImageUNetConfig


class ImageUNet(Levels):
    """`fluidjax.models.image_unet.ImageUNet`: (b, in_channels, x, y, z) -> (b, 1, x, y, z)."""

    def __init__(self, config: ImageUNetConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.channels[0]
        self.conv_in = conv(c.patch**3 * c.in_channels, width)
        for level, channels in enumerate(c.channels):
            if level:
                self.add(f'down_{level - 1}_downsample', Downsample(width))
            width = self.add_blocks(f'down_{level}', c, width, channels)
        for level in reversed(range(len(c.channels) - 1)):
            self.add(f'up_{level}_upsample', Upsample(width, c.channels[level]))
            width = self.add_blocks(f'up_{level}', c, 2 * c.channels[level], c.channels[level])
        self.norm_out = nn.GroupNorm(c.norm_num_groups, width, EPS)
        self.conv_out = conv(width, c.patch**3)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        h, skips = self.conv_in(space_to_depth(x, c.patch)), []
        for level in range(len(c.channels)):
            h = self.run(f'down_{level - 1}_downsample', h) if level else h
            h = self.run_blocks(f'down_{level}', c, h)
            skips.append(h)
        for level in reversed(range(len(c.channels) - 1)):
            h = torch.cat([self.run(f'up_{level}_upsample', h), skips[level]], 1)
            h = self.run_blocks(f'up_{level}', c, h)
        return depth_to_space(self.conv_out(F.silu(self.norm_out(h))), c.patch)


class Encoder(Levels):
    """The way to the latent; the mirror of `Decoder`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.channels[0]
        self.conv_in = conv(c.patch**3 * c.in_channels, width)
        for level, channels in enumerate(c.channels):
            if level:
                self.add(f'down_{level - 1}_downsample', Downsample(width, at_end=True))
            width = self.add_blocks(f'down_{level}', c, width, channels)
        self.norm_out = nn.GroupNorm(c.norm_num_groups, width, EPS)
        self.conv_out = conv(width, c.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in range(len(self.config.channels)):
            h = self.run(f'down_{level - 1}_downsample', h) if level else h
            h = self.run_blocks(f'down_{level}', self.config, h)
        return self.conv_out(self.norm_out(h))


class Decoder(Levels):
    """The way back to patches of the volume."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.channels[-1]
        self.conv_in = conv(c.latent_channels, width)
        for level, channels in enumerate(reversed(c.channels)):
            if level:
                self.add(f'up_{level - 1}_upsample', Upsample(width, width))
            width = self.add_blocks(f'up_{level}', c, width, channels)
        self.norm_out = nn.GroupNorm(c.norm_num_groups, width, EPS)
        self.conv_out = conv(width, c.patch**3 * c.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for level in range(len(self.config.channels)):
            h = self.run(f'up_{level - 1}_upsample', h) if level else h
            h = self.run_blocks(f'up_{level}', self.config, h)
        return self.conv_out(self.norm_out(h))


class Autoencoder(nn.Module):
    """`fluidjax.models.autoencoder.Autoencoder`, decoding the mean latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_mu, self.quant_log_var, self.post_quant = (
            conv(c.latent_channels, c.latent_channels, 1) for _ in range(3)
        )
        if c.linear_path:
            voxels = c.factor**3 * c.in_channels
            self.linear_encode = Dense(voxels, c.latent_channels)
            self.linear_decode = Dense(c.latent_channels, voxels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent."""
        c = self.config
        h = self.encoder(space_to_depth(x, c.patch))
        mean, log_var = self.quant_mu(h), self.quant_log_var(h)
        if c.linear_path:
            mean = mean + self.linear_encode(space_to_depth(x, c.factor))
            log_var = log_var + LINEAR_LOG_VAR
        return mean, log_var.clamp(*LOG_VAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Volume of a latent."""
        c = self.config
        x = depth_to_space(self.decoder(self.post_quant(z)), c.patch)
        return x + depth_to_space(self.linear_decode(z), c.factor) if c.linear_path else x

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])
