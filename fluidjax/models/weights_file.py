"""Weights in files of PyTorch, safetensors or numpy, as arrays by name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fluidjax.base.errors import UserError

Weights = dict[str, np.ndarray]
# Keys under which a file keeps its weights, the preferred ones first.
WRAPPERS = ('ema', 'ema_state_dict', 'state_dict', 'model_state_dict', 'model', 'module')


def read_state_dict(path: Path) -> Weights:
    """The tensors of a .npz, .safetensors, .pt, .pth or .ckpt file, by name.

    Raises:
        UserError: no such file, one that cannot be read, or a package that is not installed.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file; name a checkpoint of the published code')
    readers = {
        '.npz': _read_npz,
        '.safetensors': _read_safetensors,
        '.pt': _read_torch,
        '.pth': _read_torch,
        '.ckpt': _read_torch,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f'{path}: not a checkpoint by its name; there are {", ".join(readers)}')
    arrays = readers[path.suffix.lower()](path)
    try:
        return {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{path}: holds entries that are not numbers ({_brief(error)}); keep '
            'only the weights in it'
        ) from error


def _read_npz(path: Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f'{path}: not a readable .npz file ({_brief(error)}); write it with '
            'numpy.savez, one array per tensor'
        ) from error
    marked = {name[3:]: array for name, array in arrays.items() if name.startswith('sd/')}
    return marked or arrays  # 'sd/' marks the weights among the inputs and outputs of a test file


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(
            f"{path}: reading it needs the package safetensors, the extra 'safetensors'"
            " of fluidjax; pip install 'safetensors>=0.4'"
        ) from None
    try:
        return dict(load_file(path))
    except Exception as error:  # the package's own exception type is not public in all versions
        raise UserError(
            f'{path}: not a readable .safetensors file ({_brief(error)}); write it again as float32'
        ) from error


def _read_torch(path: Path) -> Weights:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading it needs PyTorch, the extra 'torch' of fluidjax; pip "
            "install 'torch>=2.2', or save its state dict as .safetensors or .npz"
        ) from None
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path}: cannot be read as tensors only ({_brief(error)}); if you trust '
            'it, save its state dict on its own: torch.save(torch.load(FILE, '
            "weights_only=False)['state_dict'], 'weights.pt')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f'{path}: not a readable PyTorch file ({_brief(error)}); copy or save it again'
        ) from error
    return {
        name: value.detach().float().numpy()
        for name, value in _unwrap(content, path).items()
        if isinstance(value, torch.Tensor)
    }


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    """The state dict in a checkpoint, flat; several networks side by side keep their names."""
    if not isinstance(content, Mapping):
        raise UserError(
            f'{path}: holds {type(content).__name__}, not tensors by name; save the '
            "model's state_dict()"
        )
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return _unwrap(content[wrapper], path)
    flat = {}
    for name, value in content.items():
        if not isinstance(value, Mapping):
            flat[str(name)] = value
        elif not str(name).startswith(('opt', 'lr_')):
            flat |= {f'{name}.{inner}': v for inner, v in _unwrap(value, path).items()}
    return flat


def _brief(error: Exception) -> str:
    return ' '.join(str(error).split())[:120] or type(error).__name__
