r"""Bounds of a chain's Lipschitz constant, rounding included: norms, LipLT and magnitudes.

Each engine takes `Layer` after `Layer` and returns a factor and an exponent: the bound is the
factor times two to that power. Below, :math:`\hat X` is a computed matrix, u the unit
roundoff, and a *lost* number is at least the norm of exact minus computed.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.chains.products import (
  CHUNK,
  exponent_of,
  magnitude_norm,
  norm_above,
  norms_above,
  over_layers,
  product,
  product_lost,
  product_of_scalars,
  times_power_of_two,
  underflow,
)
from lipjax.measure.rounding import product_error, unit_roundoff, up


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


def product_of_norms(layers: list[Layer]) -> Bound:
  r""":math:`\prod_i \|U_i\|`: slopes are at most 1 in magnitude."""
  return product_of_scalars(jnp.stack([layer.norm for layer in layers]))


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


def liplt(layers: list[Layer]) -> Bound:
  r"""Linear parts composed, and the rest bounded layer by layer.

  With any centre m, :math:`\phi(u) = mu + r(u)` and the slopes of r are at most
  :math:`h = \max(\beta - m, m - \alpha)` in magnitude. The input :math:`u_k` of the k-th
  function is then

  .. math::
    u_k = A_{k0}\,x + \sum_{j<k} A_{kj}\,r_j(u_j), \qquad
    A_{kj} = U_k M_{k-1} U_{k-1} \cdots M_{j+1} U_{j+1},

  so that its Lipschitz constant obeys
  :math:`L_k \le \|A_{k0}\| + \sum_{j<k} \|A_{kj} H_j\|\,L_j`; and
  :math:`L_k \le \|U_k\|\,L_{k-1}`. The norms are the smaller of the computed one and
  :math:`\|U_k M_{k-1}\|` times the one before.

  **Rounding.** With :math:`T = \mathrm{fl}(\hat U_k M_{k-1})`, which has lost t, a composite
  :math:`\hat C` that has lost c becomes one that has lost at most
  :math:`\|U_k M_{k-1}\|\,c + t\,\|\hat C\|` and what the product rounds.

  Reference:
    Fazlyab et al. (2023), Certified robustness via dynamic margin maximization and improved
    Lipschitz regularization, arXiv:2310.00116 (LipLT).
  """
  stacks, lost, growths = _composites(layers)
  n, tiny = len(layers), float(jnp.finfo(lost.dtype).tiny)
  norms = iter(norms_above([stack for row in stacks for stack in row]))
  rows = [jnp.concatenate([next(norms) for _ in row]) for row in stacks]
  rows = jnp.stack([jnp.pad(row, (0, n - row.size)) for row in rows])

  def step(carry, layer):
    # Of products of two that can become 0 but should not, `tiny` takes the place.
    before, constants = carry
    row, growth, norm, k = layer
    row = jnp.where(jnp.arange(n) < k, jnp.minimum(row, up(growth * before) + tiny), row)
    total = up(jnp.sum(row * constants[:-1]), 2 * n)
    total = jnp.minimum(total, up(norm * constants[k])) + n * tiny
    return (row, constants.at[k + 1].set(total)), None

  # The input comes first, with the constant 1; what has not started is 0.
  start = (jnp.zeros_like(rows[0]), jnp.zeros(n + 1, rows.dtype).at[0].set(1))
  sizes = jnp.stack([layer.norm for layer in layers])
  rows = jnp.where(jnp.tri(n, dtype=bool), up(rows + lost), 0)
  (_, constants), _ = lax.scan(step, start, (rows, growths, sizes, jnp.arange(n)))
  return constants[-1], 0


def _composites(layers: list[Layer]) -> tuple[list[list[jax.Array]], jax.Array, jax.Array]:
  """Of each layer ``A_k0`` and all ``A_kj H_j`` in stacks, what each has lost, and ``‖U M‖``."""
  first = layers[0]
  widths = [layer.matrix.shape[1] for layer in layers]
  starts = [0, *itertools.accumulate(widths)]
  columns = np.arange(starts[-1])[:, None]
  # All of them side by side, 0 before they start.
  blocks = (columns >= np.array(starts[:-1])) & (columns < np.array(starts[1:]))
  blocks = jnp.asarray(blocks, first.matrix.dtype)

  def step(carry, item):
    joined, lost = carry
    layer, centre, spread, start, index = item
    left, left_lost = _scaled_columns(layer, centre)
    growth = up(layer.norm * jnp.max(jnp.abs(centre)))
    lost = growth * lost + left_lost * magnitude_norm(joined, blocks)
    lost = up(lost + product_lost(left, joined, blocks))
    new, new_lost = _scaled_columns(layer, spread)
    joined = lax.dynamic_update_slice_in_dim(product(left, joined), new, start, axis=1)
    lost = lax.stop_gradient(lost.at[index].set(new_lost))
    return (joined, lost), (joined, lost, growth)

  items = []
  for i, (before, layer) in enumerate(itertools.pairwise(layers), start=1):
    centre = (before.alpha + before.beta) / 2
    # The differences are of rounded numbers.
    spread = up(jnp.maximum(before.beta - centre, centre - before.alpha), 2)
    items.append((layer.without_slopes(), centre, spread, jnp.int32(starts[i]), jnp.int32(i)))
  joined = jnp.pad(first.matrix, ((0, 0), (0, starts[-1] - widths[0])))
  lost = lax.stop_gradient(jnp.zeros(len(layers), joined.dtype).at[0].set(first.lost))
  _, outs = over_layers(step, (joined, lost), items)
  joined, losses, growths = zip((joined, lost, first.norm), *outs, strict=True)
  stacks = [_stacks(x, widths[: i + 1]) for i, x in enumerate(joined)]
  return stacks, jnp.stack(losses), jnp.stack(growths)


def _stacks(joined: jax.Array, widths: list[int]) -> list[jax.Array]:
  """Matrices that stand side by side, those of equal width that follow each other in a stack."""
  stacks, start = [], 0
  for width, group in itertools.groupby(widths):
    count = len(list(group))
    part = joined[:, start : start + count * width]
    stacks.append(jnp.swapaxes(part.reshape((-1, count, width)), 0, 1))
    start += count * width
  return stacks


def _scaled_columns(layer: Layer, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``U diag(factors)`` for factors of at most 1, and what is lost: a rounding more."""
  scaled = layer.matrix * factors
  unit = unit_roundoff(scaled.dtype)
  lost = 2 * unit * magnitude_norm(scaled) + up(layer.lost) + layer.grain * scaled.size**0.5
  return scaled, lax.stop_gradient(up(lost))
