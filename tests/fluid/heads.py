"""What the tests of this folder share: a jit that compiles quickly, keys, small heads, blobs."""

from __future__ import annotations

import functools

import jax
import numpy as np

from fluidjax.fluid import Grid, operators

# A quarter of the usual compile time; the programs here are small and run as fast.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 1})


def split(seed: int, count: int) -> jax.Array:
    """Keys (count,)."""
    return jax.random.split(jax.random.key(seed), count)


def head(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A brain that fills most of the grid, an ellipsoid: image and mask (x, y (, z))."""
    places = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing='ij')
    brain = sum(p**2 for p in places) < 0.8
    tissue = 0.6 + 0.3 * np.sin(5 * places[0]) * np.cos(4 * places[1])
    return (brain * tissue).astype(np.float32), brain


def places_mm(grid: Grid) -> np.ndarray:
    """Where the voxels lie (d, x, y (, z)), mm."""
    axes = (h * np.arange(n) for n, h in zip(grid.shape, grid.spacing))
    return np.stack(np.meshgrid(*axes, indexing='ij'))


def blob(grid: Grid, centre: tuple[float, ...], radius: float) -> np.ndarray:
    """A Gaussian of a radius about a centre, both in mm: smooth, with maximum 1."""
    offset = (places_mm(grid).T - np.asarray(centre)).T
    return np.float32(np.exp(-np.sum(offset**2, axis=0) / radius**2))


def box(grid: Grid, *corners: slice) -> np.ndarray:
    """A boolean mask (x, y (, z)) of a box."""
    mask = np.zeros(grid.shape, bool)
    mask[corners] = True
    return mask


def orders(errors) -> np.ndarray:
    """Orders of convergence measured from errors at halved steps."""
    errors = np.asarray(errors, float)
    return np.log2(errors[:-1] / errors[1:])


def divergence(V, grid):
    """The divergence (x, y (, z)) by the differences of `operators.curl`."""
    slopes = (operators.derivative(V[..., k], axis, grid) for k, axis in enumerate(grid.axes))
    return sum(slopes)
