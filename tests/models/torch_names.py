"""The published networks' state dicts, as stored in the golden files, in our parameter trees."""

from __future__ import annotations

import re

import numpy as np

TRANSLATIONS = {
    'autoencoder': (
        (r'^quant_conv_mu', 'quant_mu'),
        (r'^quant_conv_log_sigma', 'quant_log_var'),
        (r'^post_quant_conv', 'post_quant'),
        (r'nin_shortcut', 'skip'),
    ),
    'discriminator': (),
    'unet': (
        (r'^time_embed\.0', 'time_0'),
        (r'^time_embed\.2', 'time_1'),
        (r'^(down|up)_blocks\.(\d+)\.resnets\.(\d+)', r'\1_\2_res_\3'),
        (r'^(down|up)_blocks\.(\d+)\.attentions\.(\d+)', r'\1_\2_attn_\3'),
        (r'^down_blocks\.(\d+)\.downsampler\.op', r'down_\1_downsample.conv'),
        (r'^up_blocks\.(\d+)\.upsampler', r'up_\1_upsample'),
        (r'^middle_block\.resnet_(\d)', r'mid_res_\1'),
        (r'^middle_block\.attention', 'mid_attn'),
        (r'time_emb_proj', 'time_proj'),
        (r'cond_emb_proj', 'cond_proj'),
        (r'skip_connection', 'skip'),
        (r'out_layers\.0', 'norm2'),
        (r'out_layers\.3', 'conv2'),
        (r'^out\.0', 'norm_out'),
        (r'^out\.2', 'conv_out'),
    ),
    'condition': (
        (r'^input_blocks\.0\.0', 'conv_in'),
        (r'^input_blocks\.1\.1', 'down_0_attn'),
        (r'^middle_block\.1', 'mid_attn'),
        (r'^middle_block\.0', 'mid_res_1'),
        (r'^middle_block\.2', 'mid_res_2'),
        (r'^out\.0', 'norm_out'),
        (r'^out\.3', 'conv_out'),
        (r'in_layers\.0', 'norm'),
        (r'in_layers\.2', 'conv'),
        (r'skip_connection', 'skip'),
        (r'proj_out', 'proj_attn'),
    ),
}


def state_dict(arrays: dict[str, np.ndarray], prefix: str = 'sd/') -> dict[str, np.ndarray]:
    """The weights among the entries of a golden file, named as in torch."""
    return {name[len(prefix):]: arrays[name] for name in arrays if name.startswith(prefix)}


def autoencoder_params(
    weights: dict[str, np.ndarray], channels: tuple, num_res_blocks: int
) -> dict:
    """Tree of `Autoencoder`; torch numbers the blocks of encoder and decoder one after another."""
    def rename(name: str) -> str:
        match = re.match(r'(encoder|decoder)s\.0\.blocks\.(\d+)\.(.*)', name)
        if not match:
            return _translate(name, 'autoencoder')
        part, index, rest = match.groups()
        inner = _sequential(int(index), len(channels), num_res_blocks, part == 'encoder')
        return _translate(f'{part}.{inner}.{rest}', 'autoencoder')

    return _tree(weights, rename)


def discriminator_params(weights: dict[str, np.ndarray]) -> dict:
    """Tree of `Discriminator`; running statistics are left out."""
    names = {'0': 'conv_0', '2': 'conv_1', '3': 'norm_1', '5': 'conv_2', '6': 'norm_2',
             '8': 'conv_3', '9': 'norm_3', '11': 'conv_4'}
    kept = {k: v for k, v in weights.items() if 'running' not in k and 'num_batches' not in k}
    return _tree(kept, lambda name: f'{names[name.split(".")[1]]}.{name.split(".")[2]}')


def unet_params(weights: dict[str, np.ndarray], levels: int) -> dict:
    """Tree of `UNet`; torch counts the way up from the coarsest level, we name the level."""
    own = {k: v for k, v in weights.items() if not k.startswith('encoder.')}
    condition = {k[8:]: v for k, v in weights.items() if k.startswith('encoder.')}

    def rename(name: str) -> str:
        flipped = re.sub(r'^up_blocks\.(\d+)',
                         lambda m: f'up_blocks.{levels - 1 - int(m.group(1))}', name)
        return _translate(flipped, 'unet')

    tree = _tree(own, rename)
    if condition:
        tree['condition'] = _condition_params(condition)
    return tree


def _condition_params(weights: dict[str, np.ndarray]) -> dict:
    split = {}
    for name, value in weights.items():
        if '.qkv.' in name:
            for part, chunk in zip(('to_q', 'to_k', 'to_v'), np.split(value, 3)):
                split[name.replace('qkv', part)] = chunk
        else:
            split[name] = value

    def rename(name: str) -> str:
        level = re.match(r'input_blocks\.(\d+)\.0\.(.*)', name)
        if level and int(level.group(1)) > 0:
            index, rest = int(level.group(1)), level.group(2)
            name = (f'down_{(index - 1) // 2}_res.{rest}' if index % 2
                    else f'down_{index // 2 - 1}_downsample.{rest.replace("op", "conv")}')
        return _translate(name, 'condition')

    return _tree(split, rename)


def _sequential(index: int, levels: int, blocks: int, down: bool) -> str:
    """Name of entry `index` of: conv_in, per level (blocks, resampling), norm_out, conv_out."""
    way, resample = ('down', 'downsample') if down else ('up', 'upsample')
    names = ['conv_in']
    for level in range(levels):
        names += [f'{way}_{level}_res_{block}' for block in range(blocks)]
        names += [f'{way}_{level}_{resample}'] if level < levels - 1 else []
    return (names + ['norm_out', 'conv_out'])[index]


def _translate(name: str, network: str) -> str:
    for pattern, replacement in TRANSLATIONS[network]:
        name = re.sub(pattern, replacement, name)
    return name


def _tree(weights: dict[str, np.ndarray], rename) -> dict:
    tree: dict = {}
    for name, value in weights.items():
        *path, kind = rename(name).split('.')
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        leaf, array = _leaf(kind, value, path[-1])
        assert leaf not in node, f'two weights for {name}'
        node[leaf] = array
    return tree


def _leaf(kind: str, value: np.ndarray, layer: str) -> tuple[str, np.ndarray]:
    if kind == 'bias':
        return 'bias', value
    if value.ndim == 1:
        return 'scale', value
    if value.ndim == 5:
        return 'kernel', value.transpose(2, 3, 4, 1, 0)
    return 'kernel', value.reshape(value.shape[:2]).T  # linear, or a 1-D convolution of width 1
