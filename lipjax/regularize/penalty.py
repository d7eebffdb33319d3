"""The penalties on a norm, and their slopes."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Penalty = Literal["squared", "norm", "hinge", "power"]

#: Of the power penalty, unless told otherwise.
EXPONENT = 2


def check_penalty(penalty: str, target: float | jax.Array | None, exponent: object = None) -> None:
  """Raises a `ValueError` for an unknown penalty or a number that does not fit it."""
  if penalty not in get_args(Penalty):
    msg = f"penalty is {penalty!r}; expected one of {', '.join(map(repr, get_args(Penalty)))}."
    raise ValueError(msg)
  if penalty == "hinge" and target is None:
    msg = "penalty='hinge' needs target=…, the norm above which it acts."
    raise ValueError(msg)
  if penalty != "hinge" and target is not None:
    msg = f"target={target} has no meaning for penalty={penalty!r}; use penalty='hinge'."
    raise ValueError(msg)
  if penalty != "power" and exponent is not None:
    msg = f"exponent={exponent} has no meaning for penalty={penalty!r}; use penalty='power'."
    raise ValueError(msg)
  if isinstance(exponent, (int, float)) and not exponent >= 1:
    msg = f"exponent is {exponent}; expected a number of at least 1."
    raise ValueError(msg)


def penalty_value(penalty: Penalty, sigma: jax.Array, target, exponent=None) -> jax.Array:
  """The penalty of each norm, without its strength."""
  if penalty == "squared":
    return 0.5 * jnp.square(sigma)
  if penalty == "norm":
    return sigma
  if penalty == "hinge":
    return 0.5 * jnp.square(jnp.maximum(sigma - target, 0))
  return jnp.square(sigma ** (EXPONENT if exponent is None else exponent) - 1)


def penalty_slope(penalty: Penalty, sigma: jax.Array, target, exponent=None) -> jax.Array:
  """The derivative of `penalty_value` in sigma, finite; 0 for a zero operator."""
  if penalty == "squared":
    return sigma
  if penalty == "norm":
    return jnp.where(sigma == 0, 0, jnp.ones_like(sigma))
  if penalty == "hinge":
    return jnp.maximum(sigma - target, 0)
  exponent = EXPONENT if exponent is None else exponent
  slope = 2 * exponent * (sigma**exponent - 1) * sigma ** (exponent - 1)
  return jnp.where(sigma == 0, 0, jnp.minimum(slope, jnp.finfo(sigma.dtype).max))
