"""The three penalties on a spectral norm, and their slopes."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Penalty = Literal["squared", "norm", "hinge"]


def check_penalty(penalty: str, target: float | jax.Array | None) -> None:
  """Raises a `ValueError` for an unknown penalty or a target that does not fit it."""
  if penalty not in get_args(Penalty):
    msg = f"penalty is {penalty!r}; expected one of {', '.join(map(repr, get_args(Penalty)))}."
    raise ValueError(msg)
  if penalty == "hinge" and target is None:
    msg = "penalty='hinge' needs target=…, the norm above which it acts."
    raise ValueError(msg)
  if penalty != "hinge" and target is not None:
    msg = f"target={target} has no meaning for penalty={penalty!r}; use penalty='hinge'."
    raise ValueError(msg)


def penalty_value(penalty: Penalty, sigma: jax.Array, target) -> jax.Array:
  """The penalty of each norm, without its strength."""
  if penalty == "squared":
    return 0.5 * jnp.square(sigma)
  if penalty == "norm":
    return sigma
  return 0.5 * jnp.square(jnp.maximum(sigma - target, 0))


def penalty_slope(penalty: Penalty, sigma: jax.Array, target) -> jax.Array:
  """The derivative of `penalty_value` in sigma; 0 for a zero operator."""
  if penalty == "squared":
    return sigma
  if penalty == "norm":
    return jnp.where(sigma == 0, 0, jnp.ones_like(sigma))
  return jnp.maximum(sigma - target, 0)
