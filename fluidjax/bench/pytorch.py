"""The cases in PyTorch (`case.Case`): on a CPU eagerly, on a GPU compiled, both channels last.

Needs PyTorch, which fluidjax does not install: ask `case.pytorch` before importing this module.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import Tensor, nn

from fluidjax.bench.case import GOAL, TRAINING, UNUSED, Case
from fluidjax.bench.timer import median_seconds
from fluidjax.bench.torch_images import Autoencoder, ImageUNet
from fluidjax.bench.torch_unet import UNet
from fluidjax.models.autoencoder import AutoencoderConfig
from fluidjax.models.image_unet import ImageUNetConfig
from fluidjax.models.unet import UNetConfig

MODULES: dict[type, type[nn.Module]] = {
    AutoencoderConfig: Autoencoder,
    ImageUNetConfig: ImageUNet,
    UNetConfig: UNet,
}


class Half(nn.Module):
    """One half of an autoencoder: volume to mean latent, or latent to volume."""

    def __init__(self, whole: Autoencoder, way: str) -> None:
        super().__init__()
        self.way, self.whole = way, whole
        for name in UNUSED[way]:
            if hasattr(whole, name):
                delattr(whole, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole.encode(x)[0] if self.way == 'encode' else self.whole.decode(x)


def use_cores(count: int) -> None:
    """Compute on so many cores of a CPU."""
    torch.set_num_threads(count)


def network_of(case: Case) -> nn.Module:
    """The network of a case with random parameters."""
    network = MODULES[type(case.config)](case.config)
    return network if case.way == 'apply' else Half(network, case.way)


def load(network: nn.Module, params: Any) -> None:
    """Copy our parameters, a tree of arrays, into the network that computes the same."""
    state = {}
    for path, value in flatten_dict(params).items():
        *parts, kind = path
        kind = {'kernel': 'weight', 'scale': 'weight'}.get(kind, kind)
        state['.'.join((*parts, kind))] = torch.from_numpy(_as_torch(np.asarray(value)))
    network.load_state_dict(state)


def _as_torch(value: np.ndarray) -> np.ndarray:
    """An array in PyTorch's order of axes: channels out, channels in, space."""
    if value.ndim == 4:  # the bias of a position (x, y, z, c)
        return np.array(value.transpose((3, 0, 1, 2))[None], np.float32)
    axes = {5: (4, 3, 0, 1, 2), 2: (1, 0)}.get(value.ndim, (0,))
    return np.array(value.transpose(axes), np.float32)


def channels_first(x: jax.Array) -> Tensor:
    """(b, x, y, z, c) -> (b, c, x, y, z), float32, on the CPU."""
    return torch.from_numpy(np.array(x, np.float32)).permute(0, 4, 1, 2, 3)


class Timed:
    """A case on a device of PyTorch, ready to be called.

    Args:
        case: its batch is computed at once.
        device: 'cpu' or 'cuda'.
        compiled: whether to use `torch.compile`.
    """

    def __init__(self, case: Case, device: str, compiled: bool) -> None:
        torch.manual_seed(0)
        self._device, self._dtype = device, getattr(torch, case.config.dtype)
        network = network_of(case).to(device, memory_format=torch.channels_last_3d)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._network = torch.compile(network) if compiled else network
        self._inputs = _random_inputs(case, device)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self._parameters)

    def forward(self) -> Tensor:
        """The forward pass, waited for."""
        with torch.no_grad():
            return self._ready(self._output())

    def trainer(self) -> Callable[[], Tensor]:
        """A function that takes a training step (see `case`) and returns the loss."""
        rates, parameters = TRAINING.optimizer, self._parameters
        optimizer = torch.optim.AdamW(
            parameters,
            rates.learning_rate,
            (0.9, rates.b2),
            weight_decay=rates.weight_decay,
            fused=True,
        )
        averages = [p.detach().clone() for p in parameters]

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = (self._output().float() - GOAL).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, rates.clip_norm)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1.0 - TRAINING.ema_decay)
            return self._ready(loss.detach())

        return step

    def _output(self) -> Tensor:
        mixed = self._dtype != torch.float32
        how = torch.autocast(self._device, self._dtype) if mixed else contextlib.nullcontext()
        with how:
            return self._network(*self._inputs)

    def _ready(self, result: Tensor) -> Tensor:
        if self._device == 'cuda':
            torch.cuda.synchronize()
        return result


def _random_inputs(case: Case, device: str) -> tuple[Tensor, ...]:
    *sides, channels = case.shape
    shape = (case.batch, channels, *sides)
    volumes = [
        torch.rand(shape, device=device).to(memory_format=torch.channels_last_3d)
        for _ in range(1 + case.conditional)
    ]
    if not isinstance(case.config, UNetConfig):
        return tuple(volumes)
    return volumes[0], torch.full((case.batch,), 500, device=device), *volumes[1:]


def measure(case: Case, step: bool, repeats: int) -> dict[str, float]:
    """Time the forward pass or training step of a case on a GPU, else on the CPU.

    Returns:
        `milliseconds`, `compile_seconds` until the first result, `parameters`, and on a GPU
        `gigabytes`, the most that was allocated at once.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    timed = Timed(case, 'cuda' if on_gpu else 'cpu', compiled=on_gpu)
    call = timed.trainer() if step else timed.forward
    call()
    compile_seconds = time.perf_counter() - began
    measured = {
        'milliseconds': 1000.0 * median_seconds(call, repeats),
        'compile_seconds': compile_seconds,
        'parameters': timed.parameters,
    }
    if on_gpu:
        measured['gigabytes'] = torch.cuda.max_memory_allocated() / 1e9
    return measured
