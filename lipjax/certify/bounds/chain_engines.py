r"""The layers of a chain, as its engines take them, and the bound by the weights' magnitudes.

Each engine takes `Layer` after `Layer` and returns a factor and an exponent: the bound is the
factor times two to that power. Below, :math:`\hat X` is a computed matrix, u the unit
roundoff, and a *lost* number is at least the norm of exact minus computed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.bounds.chain_products import (
  CHUNK,
  exponent_of,
  magnitude_norm,
  norm_above,
  over_layers,
  product,
  times_power_of_two,
  underflow,
)
from lipjax.rounding.errors import product_error, unit_roundoff, up


class Layer(NamedTuple):
  r"""A matrix and the slopes of the elementwise function after it.

  Attributes:
    matrix: :math:`\hat U`, (outputs, inputs); the exact one is :math:`U` with
      :math:`|U - \hat U| \le 2u|\hat U| + \text{grain}` in each entry.
    lost: at least :math:`\|U - \hat U\|`.
    grain: see `matrix`.
    norm: at least :math:`\|U\|`, between ½ and 1.
    alpha: the lowest slopes, (outputs,), from -1 to 1; None after the last matrix.
    beta: the highest slopes.
  """

  matrix: jax.Array
  lost: jax.Array
  grain: jax.Array
  norm: jax.Array
  alpha: Any
  beta: Any

  def without_slopes(self) -> Layer:
    """Arrays only, the same ones for the last layer as for the others."""
    return self._replace(alpha=None, beta=None)


#: A bound as a factor and an exponent of two.
Bound = tuple[jax.Array, jax.Array | int]


def magnitude(layers: list[Layer]) -> Bound:
  r"""The norm of :math:`P = |U_l| \cdots |U_1|`.

  A Jacobian is :math:`J = U_l D_{l-1} \cdots D_1 U_1` with :math:`|D_i| \le I`, so that
  :math:`|J| \le P` in each entry, and with it :math:`\|J\| \le \| |J| \| \le \|P\|`.

  **Rounding.** Sums of numbers that are not negative have a relative error: in each entry
  :math:`P_i \le (1 + \rho_i)(\hat P_i + T_i)` with

  .. math::
    1 + \rho_{i+1} = (1 + \rho_i)(1 + 2u)/(1 - \gamma), \qquad
    T_{i+1} = |\hat U|\,T_i + \text{grain}\,(\hat P_i + T_i) + \text{underflow},

  of which the norm of T is tracked, with `magnitude_norm` for what multiplies it.
  """
  first, others = layers[0], layers[1:]
  dtype = first.matrix.dtype
  relative = 1 + 2 * unit_roundoff(dtype)
  for layer in others:
    error = product_error(layer.matrix.shape[1], CHUNK, dtype)
    relative *= (1 + 2 * unit_roundoff(dtype)) / (1 - error) if error < 1 else math.inf

  def step(carry, layer):
    p, rest, exponent = carry
    u = jnp.abs(layer.matrix)
    grain = layer.grain * u.size**0.5
    rest = magnitude_norm(u) * rest + grain * (magnitude_norm(p) + rest)
    rest = up(rest) + underflow(u.shape[1], (u.shape[0], p.shape[1]), dtype)
    p = product(u, p)
    # The product of magnitudes can grow by the root of the width with each layer.
    k = exponent_of(jnp.max(p))
    p, rest = times_power_of_two(p, -k), times_power_of_two(rest, -k)
    return (p, rest + underflow(1, p.shape, dtype), exponent + k), None

  p, rest = jnp.abs(first.matrix), first.grain * first.matrix.size**0.5
  start = (p, lax.stop_gradient(rest), jnp.zeros((), jnp.int32))
  (p, rest, exponent), _ = over_layers(step, start, [x.without_slopes() for x in others])
  return up(relative * (norm_above(p) + lax.stop_gradient(rest))), exponent
