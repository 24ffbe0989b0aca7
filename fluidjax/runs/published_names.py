"""Names and layouts of the published PyTorch tensors, for each of our parameters.

Every leaf of our parameter trees has one published name, so unknown, missing and misshapen tensors
of a file can be named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fluidjax.models import Autoencoder, Discriminator, UNet

Params = dict[str, Any]
Rename = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the published code, and the parameters of ours that it contains.

    Attributes:
        shape: in the published code.
        leaves: paths in our tree; several are stacked along the tensor's first axis.
    """

    shape: tuple[int, ...]
    leaves: tuple[str, ...]


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the published autoencoder, discriminator or U-Net, by their names."""
    rename = _renaming(model)
    leaves = flatten_dict(dict(_shapes(model)), sep='/')
    tensors: dict[str, Tensor] = {}
    for path in sorted(leaves, key=_query_key_value):
        layer, kind = path.replace('/', '.').rsplit('.', 1)
        name = f'{rename(layer)}.{"bias" if kind == "bias" else "weight"}'
        first, *rest = _published_shape(name, leaves[path].shape)
        before = tensors.get(name, Tensor((0,), ()))  # queries, keys and values are one tensor
        tensors[name] = Tensor((before.shape[0] + first, *rest), (*before.leaves, path))
    return tensors


def our_params(tensors: dict[str, Tensor], weights: dict[str, np.ndarray]) -> Params:
    """Our parameter tree, float32, from a state dict with all of `tensors`."""
    flat = {}
    for name, tensor in tensors.items():
        for path, part in zip(tensor.leaves, np.split(weights[name], len(tensor.leaves))):
            if path.endswith('/kernel'):
                # of a convolution; of a linear layer, or of a 1-D convolution of width 1
                part = (
                    part.transpose(2, 3, 4, 1, 0)
                    if part.ndim == 5
                    else part.reshape(part.shape[:2]).T
                )
            flat[path] = np.ascontiguousarray(part, np.float32)
    return unflatten_dict(flat, sep='/')


def _shapes(model: nn.Module) -> Params:
    """Shapes of a module's parameters, computed on the smallest grid that it accepts."""
    if isinstance(model, Autoencoder):
        inputs = ((1, *(model.config.factor,) * 3, model.config.in_channels),)
    elif isinstance(model, Discriminator):
        inputs = ((1, *(3 * 2**model.num_layers,) * 3, 1),)
    else:
        c = model.config
        x = (1, *(c.divisor,) * 3, c.in_channels)
        cond = (1, c.condition_slices, *x[2:]) if c.condition == 'vector' else x
        inputs = (x, (1,)) if c.condition == 'none' else (x, (1,), cond)
    specs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs)
    return jax.eval_shape(model.init, jax.random.key(0), *specs)['params']


def _query_key_value(path: str) -> tuple[str, int]:
    """Sort key that puts queries, keys and values in the order in which they are stacked."""
    parts = re.split(r'(?<=/to_)([qkv])(?=/)', path)
    return (''.join(parts[::2]), 'qkv'.index(parts[1]) if len(parts) > 1 else 0)


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 5:
        return (shape[4], shape[3], *shape[:3])
    if len(shape) == 2:
        width = (1,) if re.search(r'\.(?:qkv|proj_out)\.', name) else ()  # a 1-D convolution
        return (shape[1], shape[0], *width)
    return shape


def _renaming(model: nn.Module) -> Rename:
    if isinstance(model, Autoencoder):
        return _autoencoder_names(len(model.config.channels), model.config.num_res_blocks)
    if isinstance(model, Discriminator):
        return lambda layer: re.sub(
            r'(conv|norm)_(\d+)', lambda m: f'main.{_discriminator_index(m[1], int(m[2]))}', layer
        )
    if isinstance(model, UNet):
        return _unet_names(len(model.config.channels), model.config.condition == 'vector')
    raise TypeError(f'{type(model).__name__} has no published counterpart')


def _discriminator_index(kind: str, layer: int) -> int:
    """Of: conv, activation, then for each further layer conv, norm, activation."""
    return 3 * layer if kind == 'norm' else max(0, 3 * layer - 1)


def _autoencoder_names(levels: int, num_res_blocks: int) -> Rename:
    """Encoder and decoder each number their parts one after another."""
    numbers = {}
    for part, way in (('encoder', 'down'), ('decoder', 'up')):
        blocks = ['conv_in']
        for level in range(levels):
            blocks += [f'{way}_{level}_res_{block}' for block in range(num_res_blocks)]
            blocks += [f'{way}_{level}_{way}sample'] if level < levels - 1 else []
        numbers |= {
            f'{part}.{block}': f'{part}s.0.blocks.{index}'
            for index, block in enumerate([*blocks, 'norm_out', 'conv_out'])
        }
    outside = {
        'quant_mu': 'quant_conv_mu',
        'quant_log_var': 'quant_conv_log_sigma',
        'post_quant': 'post_quant_conv',
    }

    def rename(layer: str) -> str:
        if layer in outside:
            return outside[layer]
        part, block, *inner = layer.split('.')
        inner = ['nin_shortcut' if name == 'skip' else name for name in inner]
        return '.'.join([numbers[f'{part}.{block}'], *inner])

    return rename


def _unet_names(levels: int, vector: bool) -> Rename:
    second_half = [(r'norm2$', 'out_layers.0'), (r'conv2$', 'out_layers.3')] if vector else []
    unet = [
        (r'^time_(\d)', lambda m: f'time_embed.{2 * int(m[1])}'),
        (r'^up_(\d+)', lambda m: f'up_blocks.{levels - 1 - int(m[1])}'),  # the coarsest is first
        (r'^down_(\d+)', r'down_blocks.\1'),
        (r'_res_(\d+)', r'.resnets.\1'),
        (r'_attn_(\d+)', r'.attentions.\1'),
        (r'_downsample\.conv', '.downsampler.op'),
        (r'_upsample', '.upsampler'),
        (r'^mid\.resnets\.', 'middle_block.resnet_'),
        (r'^mid_attn', 'middle_block.attention'),
        (r'time_proj$', 'time_emb_proj'),
        (r'cond_proj$', 'cond_emb_proj'),
        (r'skip$', 'skip_connection'),
        (r'^norm_out$', 'out.0'),
        (r'^conv_out$', 'out.2'),
        *second_half,
    ]
    condition = [
        (r'^conv_in$', 'input_blocks.0.0'),
        (r'^down_0_attn', 'input_blocks.1.1'),
        (r'^down_(\d+)_res', lambda m: f'input_blocks.{2 * int(m[1]) + 1}.0'),
        (r'^down_(\d+)_downsample\.conv', lambda m: f'input_blocks.{2 * int(m[1]) + 2}.0.op'),
        (r'^mid_res_1', 'middle_block.0'),
        (r'^mid_attn', 'middle_block.1'),
        (r'^mid_res_2', 'middle_block.2'),
        (r'\.([02])\.norm$', r'.\1.in_layers.0'),  # of a block, not of an attention
        (r'\.([02])\.conv$', r'.\1.in_layers.2'),
        (r'skip$', 'skip_connection'),
        (r'to_[qkv]$', 'qkv'),
        (r'proj_attn$', 'proj_out'),
        (r'^norm_out$', 'out.0'),
        (r'^conv_out$', 'out.3'),
    ]

    def rename(layer: str) -> str:
        inside = layer.removeprefix('condition.')
        return (
            _substitute(layer, unet)
            if inside == layer
            else ('encoder.' + _substitute(inside, condition))
        )

    return rename


def _substitute(name: str, rules: Iterable[tuple]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
