"""Weights of the published PyTorch code, read as our networks with their parameters.

    file -> state dict -> networks and their sizes -> parameters, checked by name and shape

The published files contain an autoencoder with its discriminator (Lightning: `state_dict`), or a
U-Net and its moving average (`model`, `ema`; the average is used). The perceptual loss and the
running statistics of batch norms are ignored, because our networks do not have them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.models import Autoencoder, AutoencoderConfig, Discriminator, UNet, UNetConfig
from fluidjax.models.weights_file import Weights, read_state_dict
from fluidjax.runs.published_names import Params, Tensor, our_params, published_tensors

CONDITION_CHANNELS = 64  # numbers per slice that the published condition encoder gives
# Names that identify a network; the text before them is its prefix in the file.
SIGNATURES = {
    'autoencoder': r'(?:encoders|decoders)\.0\.blocks\.\d+\.',
    'discriminator': r'main\.\d+\.(?:weight|bias|running)',
    'unet': r'(?:down_blocks|up_blocks)\.\d+\.(?:resnets|attentions)\.',
}
UNUSED = re.compile(
    r'(?:.*\.)?(?:running_mean|running_var|num_batches_tracked)'
    r'|(?:.*\.)?perceptual_loss\..*'
)
LISTED = 8  # names of each kind in one message


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Settings that cannot be derived from the weights; the defaults are the published ones.

    Attributes:
        autoencoder_groups, unet_groups: groups of their group norms.
        num_head_channels: channels per attention head of the U-Net. If they do not divide the
            channels of its attention levels, there is one head.
    """

    autoencoder_groups: int = 32
    unet_groups: int = 32
    num_head_channels: int = 256


@dataclasses.dataclass(frozen=True)
class Network:
    """A published network as our module, with its parameters."""

    kind: str
    model: nn.Module
    params: Params


def read_networks(path: Path, assumed: Assumed = Assumed()) -> dict[str, Network]:
    """The published networks in a file, by kind: 'autoencoder', 'discriminator', 'unet'.

    Raises:
        UserError: the file cannot be read, contains none of them, or has unknown, missing,
            misshapen or non-finite tensors, which are named.
    """
    weights = {
        name: array for name, array in read_state_dict(path).items() if not UNUSED.fullmatch(name)
    }
    prefixes = _prefixes(weights)
    if not prefixes:
        raise UserError(
            f'{path}: contains none of the published networks (autoencoder, discriminator, U-Net); '
            f'it has {_listed(sorted(weights)) or "no tensors"}'
        )
    parts: dict[str, Weights] = {kind: {} for kind in prefixes}
    unknown = []
    for name, array in weights.items():
        owners = [kind for kind, prefix in prefixes.items() if name.startswith(prefix)]
        if owners:
            owner = max(owners, key=lambda kind: len(prefixes[kind]))
            parts[owner][name[len(prefixes[owner]) :]] = array
        elif not _is_spare_copy(name, prefixes):
            unknown.append(name)
    problems: dict[str, list[str]] = {'unknown': unknown}
    networks = {}
    for kind, part in parts.items():
        model = _MODELS[kind](part, assumed, path)
        tensors = published_tensors(model)
        for what, names in _differences(tensors, part).items():
            problems.setdefault(what, []).extend(prefixes[kind] + name for name in names)
        if not any(problems.values()):
            networks[kind] = Network(kind, model, our_params(tensors, part))
    wrong = [f'{len(names)} {what}: {_listed(names)}' for what, names in problems.items() if names]
    if wrong:
        raise UserError(
            f'{path}: does not fit the published {" and ".join(parts)}, so nothing is written; '
            f'{"; ".join(wrong)}'
        )
    return networks


def _differences(tensors: dict[str, Tensor], weights: Weights) -> dict[str, list[str]]:
    """Names of tensors that do not fit, by the kind of problem."""
    both = [name for name in tensors if name in weights]
    return {
        'unknown': [name for name in weights if name not in tensors],
        'missing': [name for name in tensors if name not in weights],
        'misshapen': [
            f'{name} (is {weights[name].shape}, must be {tensors[name].shape})'
            for name in both
            if weights[name].shape != tensors[name].shape
        ],
        'not finite': [name for name in both if not np.isfinite(weights[name]).all()],
    }


def _listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
    return ', '.join(names[:LISTED]) + more


def _prefixes(weights: Weights) -> dict[str, str]:
    """The prefix of each network in the file; that of a moving average if there is one."""
    prefixes = {}
    for kind, signature in SIGNATURES.items():
        pattern = re.compile(rf'((?:.*\.)?){signature}')
        counts = Counter(match[1] for name in weights if (match := pattern.match(name)))
        if counts:
            prefixes[kind] = max(
                counts, key=lambda prefix: (prefix.endswith('ema.'), counts[prefix])
            )
    return prefixes


def _is_spare_copy(name: str, prefixes: dict[str, str]) -> bool:
    """Whether a tensor belongs to the U-Net of which the moving average is used."""
    return prefixes.get('unet', '').endswith('ema.') and name.startswith(
        prefixes['unet'].removesuffix('ema.') + 'model.'
    )


def _autoencoder(weights: Weights, assumed: Assumed, path: Path) -> Autoencoder:
    part = r'encoders\.0\.blocks\.'
    levels: list[list[str]] = [[]]  # numbers of the residual blocks of each level
    for index in sorted(_indices(weights, rf'{part}(\d+)\..*')):
        if _sizes(weights, rf'{part}{index}\.conv\..*'):
            levels.append([])
        elif _sizes(weights, rf'{part}{index}\.(?:norm|conv)[12]\..*'):
            levels[-1].append(str(index))
    levels = [blocks for blocks in levels if blocks] or levels[:1]
    channels = [
        _most(weights, rf'{part}(?:{"|".join(blocks)})\.conv[12]\..*', 0, path) for blocks in levels
    ]
    return Autoencoder(
        _checked(
            AutoencoderConfig,
            path,
            channels=tuple(channels),
            num_res_blocks=_most_common([len(blocks) for blocks in levels]),
            latent_channels=_most(weights, r'(?:quant_conv_mu|post_quant_conv)\..*', 0, path),
            norm_num_groups=assumed.autoencoder_groups,
        )
    )


def _discriminator(weights: Weights, assumed: Assumed, path: Path) -> Discriminator:
    del assumed
    norms = [index for index in _indices(weights, r'main\.(\d+)\..*') if index and index % 3 == 0]
    return Discriminator(_most(weights, r'main\.0\..*', 0, path), max(1, len(norms)))


def _unet(weights: Weights, assumed: Assumed, path: Path) -> UNet:
    indices = _indices(weights, r'down_blocks\.(\d+)\..*')
    levels = next(n for n in range(1, len(indices) + 2) if n not in indices)
    channels = [
        _most(
            weights,
            rf'down_blocks\.{level}\.resnets\.\d+\.'
            r'(?:conv1|conv2|out_layers\.3)\..*',
            0,
            path,
        )
        for level in range(levels)
    ]
    attention = [
        bool(_sizes(weights, rf'down_blocks\.{level}\.attentions\..*')) for level in range(levels)
    ]
    blocks = [
        len(_indices(weights, rf'down_blocks\.{level}\.resnets\.(\d+)\..*'))
        for level in range(levels)
    ]
    attended = [channels[-1], *(c for c, on in zip(channels, attention) if on)]
    latent, variance, doubled = _latent_channels(weights)
    condition, slices = 'concat' if doubled else 'none', UNetConfig.condition_slices
    if widths := _sizes(weights, r'.*\.cond_emb_proj\.weight', 1):
        condition, slices = 'vector', max(1, _most_common(widths) // CONDITION_CHANNELS)
    heads = assumed.num_head_channels
    return UNet(
        _checked(
            UNetConfig,
            path,
            in_channels=latent,
            out_channels=latent * (2 if variance else 1),
            channels=tuple(channels),
            attention_levels=tuple(attention),
            num_res_blocks=_most_common(blocks),
            num_head_channels=math.gcd(*attended) if any(c % heads for c in attended) else heads,
            norm_num_groups=assumed.unet_groups,
            condition=condition,
            condition_slices=slices,
        )
    )


_MODELS = {'autoencoder': _autoencoder, 'discriminator': _discriminator, 'unet': _unet}


def _latent_channels(weights: Weights) -> tuple[int, bool, bool]:
    """Channels of the latent; whether the variance is learned; whether the input is two latents."""
    for c in _sizes(weights, r'conv_in\.weight', 1):
        for out in _sizes(weights, r'out\.2\..*'):
            fits = {
                (c, True, False): out == 2 * c,
                (c // 2, True, True): out == c and c % 2 == 0,
                (c, False, False): out == c,
                (c // 2, False, True): 2 * out == c,
            }
            if any(fits.values()):
                return next(case for case, fit in fits.items() if fit)
    outs = _sizes(weights, r'out\.2\..*')  # conv_in is missing or wrong, which is reported later
    return max(1, _most_common(outs) // 2) if outs else UNetConfig.in_channels, True, False


def _sizes(weights: Weights, pattern: str, axis: int = 0) -> list[int]:
    """Sizes along an axis of all tensors whose names match a pattern."""
    return [
        array.shape[axis]
        for name, array in weights.items()
        if re.fullmatch(pattern, name) and array.ndim > axis
    ]


def _most(weights: Weights, pattern: str, axis: int, path: Path) -> int:
    """The most common of these sizes, so that a wrong tensor is noticed."""
    sizes = _sizes(weights, pattern, axis)
    if not sizes:
        raise UserError(
            f'{path}: contains only a part of a published network, so its sizes are unknown: '
            f'no tensor is named like {pattern.replace(chr(92), "")}'
        )
    return _most_common(sizes)


def _most_common(sizes: Sequence[int]) -> int:
    return Counter(sizes).most_common(1)[0][0]


def _indices(weights: Weights, pattern: str) -> set[int]:
    return {int(match[1]) for name in weights if (match := re.fullmatch(pattern, name))} or {0}


def _checked(kind: type, path: Path, **fields: Any) -> Any:
    """The configuration of a network; errors name the file, and the flags that can help."""
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(
            f'{path}: {error}; what cannot be derived from the weights is set by '
            '--config.autoencoder.network.norm_num_groups, '
            '--config.diffusion.network.norm_num_groups and .num_head_channels'
        ) from error
