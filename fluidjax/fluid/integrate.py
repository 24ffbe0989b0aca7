"""Time integration: one-step schemes, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

RightHandSide = Callable[[jax.Array], jax.Array]


def euler(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One forward Euler step: first order; a stable step keeps the bounds of P."""
    return P + dt * f(P)


# The stages of a step are a scan, too. In a row, XLA's CPU backend would compute a stage again for
# every neighbour that the next one reads (with Koren's limiter 15 times slower).
_SSP_RK3_KEPT = (0.0, 3.0 / 4.0, 1.0 / 3.0)
_RK4_AHEAD, _RK4_WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0)


def ssp_rk3(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One third-order step of Euler steps only, so their bounds hold (Shu and Osher 1988)."""

    def stage(Q: jax.Array, kept: jax.Array) -> tuple[jax.Array, None]:
        return kept * P + (1.0 - kept) * (Q + dt * f(Q)), None

    return jax.lax.scan(stage, P, jnp.asarray(_SSP_RK3_KEPT, P.dtype))[0]


def rk4(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One classical fourth-order Runge-Kutta step: a stable step may leave the bounds."""

    def stage(carried: tuple[jax.Array, jax.Array], row: jax.Array):
        slope, P_next = carried
        slope = f(P + row[0] * dt * slope)
        return (slope, P_next + row[1] * dt * slope), None

    rows = jnp.asarray((_RK4_AHEAD, _RK4_WEIGHTS), P.dtype).T
    return jax.lax.scan(stage, (jnp.zeros_like(P), P), rows)[0][1]


INTEGRATORS = {'euler': euler, 'ssp_rk3': ssp_rk3, 'rk4': rk4}
# Right-hand sides that an integrator evaluates per step.
STAGES = {'euler': 1, 'ssp_rk3': 3, 'rk4': 4}


def split_time(
    total_time: jax.Array, dt_stable: jax.Array, max_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Equal stable steps that cover a time: (dt, number of steps), the number at most `max_steps`.

    Where more would be needed, the time is shortened to what `max_steps` stable steps cover: the
    result is always stable.
    """
    needed = jnp.ceil(total_time / dt_stable * (1.0 - 1e-6))
    num_steps = jnp.clip(needed, 1, max_steps)
    dt = jnp.minimum(total_time / num_steps, dt_stable)
    return dt, num_steps.astype(jnp.int32)


def trajectory(
    step: Callable[[jax.Array], jax.Array],
    P0: jax.Array,
    num_steps: int,
    active: jax.Array | int | None = None,
) -> jax.Array:
    """The state after `active` of `num_steps` steps.

    Args:
      step: P -> P one time step later.
      P0: initial state.
      num_steps: length of the scan; static.
      active: how many of the steps are taken, so that samples of a batch may stop at different
        times without recompiling; all of them where None.

    Returns:
      The final state, shaped as P0.
    """

    def body(P: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        P_next = step(P)
        return (P_next if active is None else jnp.where(i < active, P_next, P)), None

    return jax.lax.scan(body, P0, jnp.arange(num_steps))[0]
