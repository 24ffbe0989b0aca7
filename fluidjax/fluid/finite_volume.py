"""The right-hand side dP/dt = -V . grad P + div(D grad P), in conservative form on voxel faces.

With a flow whose faces are free of divergence (`flow.face_flow`), -div(V P) and -V . grad P are the
same, so one formula is both the paper's equation and keeps the lesion's mass: what leaves a voxel
enters its neighbour. Advection is first-order upwind, or a total-variation-diminishing scheme with
Koren's limiter (Koren 1993: third order where P is smooth and monotone). Either keeps P within its
bounds for Euler steps up to the stable one, and so does every scheme made of Euler steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.fluid.flow import FaceFlow, upper_neighbour
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.operators import pad

ADVECTIONS = ('upwind', 'koren')
_NO_FLOW = 1e-12


def right_hand_side(
    flow: FaceFlow, grid: Grid, advection: str = 'koren'
) -> Callable[[jax.Array], jax.Array]:
    """The function P -> dP/dt for one flow, P and the result (x, y (, z)).

    Beyond the faces of the volume P is what it is at the face (zero-Neumann), or periodic.

    Args:
      flow: speeds and diffusivities at the upper faces.
      grid: geometry and boundary.
      advection: 'upwind' or 'koren'.
    """
    if advection not in ADVECTIONS:
        raise UserError(f'advection {advection!r}: choose one of {", ".join(ADVECTIONS)}')

    def change(P: jax.Array) -> jax.Array:
        total = jnp.zeros_like(P)
        for k, axis in enumerate(grid.axes):
            jump = _jump(P, axis, grid)
            out = into = 0.0
            if flow.speeds is not None:
                rate = flow.speeds[k].astype(P.dtype) / grid.spacing[k]
                out, into = _face_terms(jump, rate, axis, grid, advection)
            if flow.diffusivity is not None:
                spread = flow.diffusivity[k].astype(P.dtype) * jump / grid.spacing[k] ** 2
                out, into = out + spread, into - spread
            total += out + _from_below(into, axis, grid)
        return total

    return change


def _face_terms(
    jump: jax.Array, rate: jax.Array, axis: int, grid: Grid, advection: str
) -> tuple[jax.Array, jax.Array]:
    """The change of the voxels below and above a face by the flow through it.

    The face carries P_f = P_i + ahead from below, P_{i+1} - behind from above; a voxel changes by
    the flow times (P_f - its own P).
    """
    up, down = jnp.maximum(rate, 0.0), jnp.minimum(rate, 0.0)
    if advection == 'upwind':
        return -down * jump, -up * jump
    ahead = _limited(_from_below(jump, axis, grid), jump)
    behind = _limited(upper_neighbour(jump, axis, grid), jump)
    below = -(up * ahead + down * (jump - behind))
    above = -(up * (jump - ahead) + down * behind)
    return below, above


def _limited(upwind: jax.Array, here: jax.Array) -> jax.Array:
    """Half the slope of Koren's limiter: between 0 and either jump, (a + 2 b) / 6 if it can be."""
    size = jnp.minimum(
        jnp.minimum(jnp.abs(upwind), jnp.abs(here)), jnp.abs(upwind + 2.0 * here) / 6.0
    )
    return jnp.where(upwind * here > 0.0, jnp.sign(here) * size, 0.0)


def _jump(P: jax.Array, axis: int, grid: Grid) -> jax.Array:
    """P[i + 1] - P[i] at the upper faces; zero at the last one unless periodic."""
    return upper_neighbour(P, axis, grid, 'edge') - P


def _from_below(face: jax.Array, axis: int, grid: Grid) -> jax.Array:
    """face[i - 1]: what sits on the lower face of each voxel; zero below the first."""
    if grid.periodic:
        return jnp.roll(face, 1, axis)
    return pad(jax.lax.slice_in_dim(face, 0, face.shape[axis] - 1, axis=axis), axis, 1, 0)


def exchange_rate(flow: FaceFlow, grid: Grid, advection: str = 'koren') -> jax.Array:
    """The largest share of a voxel's content that is exchanged per unit time, a scalar.

    An Euler step of at most its inverse makes each new value a mean of old ones, with weights that
    are not negative: for upwind differences the weights are the inflow, for limited ones inflow and
    outflow; diffusion adds both faces.
    """
    total = 0.0
    for k, axis in enumerate(grid.axes):
        if flow.speeds is not None:
            rate = flow.speeds[k].astype(jnp.float32) / grid.spacing[k]
            if advection == 'upwind':
                total -= jnp.minimum(rate, 0.0) - _from_below(jnp.maximum(rate, 0.0), axis, grid)
            else:
                total += jnp.abs(rate) + _from_below(jnp.abs(rate), axis, grid)
        if flow.diffusivity is not None:
            spread = flow.diffusivity[k].astype(jnp.float32) / grid.spacing[k] ** 2
            total += spread + _from_below(spread, axis, grid)
    return jnp.max(total)


def stable_time_step(
    flow: FaceFlow, grid: Grid, advection: str = 'koren', cfl: float = 1.0
) -> jax.Array:
    """The time step for which `integrate.euler` and `ssp_rk3` keep P within its bounds.

    Args:
      flow: speeds and diffusivities at the faces.
      grid: geometry.
      advection: 'upwind' or 'koren'; the latter needs half the step.
      cfl: the share of the limit to use, in (0, 1].

    Returns:
      dt, a scalar; very large where nothing moves.
    """
    return cfl / jnp.maximum(exchange_rate(flow, grid, advection), _NO_FLOW)
