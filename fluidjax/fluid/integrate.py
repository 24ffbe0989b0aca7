"""Time integration: one-step schemes, and the one loop that runs them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

RightHandSide = Callable[[jax.Array], jax.Array]


def euler(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One forward Euler step: first order; a stable step keeps the bounds of P."""
    return P + dt * f(P)


def ssp_rk3(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One third-order step made of Euler steps alone, so their bounds hold (Shu and Osher 1988)."""
    P1 = P + dt * f(P)
    P2 = 0.75 * P + 0.25 * (P1 + dt * f(P1))
    return P / 3.0 + (2.0 / 3.0) * (P2 + dt * f(P2))


def rk4(f: RightHandSide, P: jax.Array, dt: jax.Array) -> jax.Array:
    """One classical fourth-order Runge-Kutta step: stable at a stable step, bounds not promised."""
    k1 = f(P)
    k2 = f(P + 0.5 * dt * k1)
    k3 = f(P + 0.5 * dt * k2)
    k4 = f(P + dt * k3)
    return P + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


INTEGRATORS = {'euler': euler, 'ssp_rk3': ssp_rk3, 'rk4': rk4}
# Right-hand sides an integrator evaluates in a step.
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
