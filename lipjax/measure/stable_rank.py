"""The stable rank: how many directions share an operator's norm."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.measure.frobenius import frobenius_norm
from lipjax.measure.norms import spectral_norms
from lipjax.measure.scaling import nonzero
from lipjax.measure.triplet import triplet_dtype
from lipjax.operators.base import LinearOperator
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.resolve import Overrides, resolve_operators


def stable_ranks(
  params: Any,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> dict[str, jax.Array]:
  r"""The stable rank :math:`\|W\|_F^2/\sigma_1^2` of every operator in a params tree.

  Between 1 and the rank, and unlike the rank continuous. Of a `Convolution` it is that of the
  map, each weight counted as often as the map uses it.

  Guarantee: an estimate from above, as :math:`\sigma_1` comes from `spectral_norms`.

  Args:
    params: a pytree of arrays.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    ``{path: stable rank}``, each of the operator's batch shape, float32 or wider; 0 for a
    zero operator, NaN for a non-finite one. Differentiable.

  Raises:
    LayoutError: a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0, 1.0]))}
    >>> round(float(lipjax.stable_ranks(params)["kernel"]), 4)
    1.5

  Reference:
    Rudelson & Vershynin (2007), J. ACM 54(4).
  """
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  sigmas = spectral_norms(params, layout=operators)

  return {
    path: stable_rank(op, jnp.asarray(leaves[path]), sigmas[path]) for path, op in operators.items()
  }


@functools.partial(jax.jit, static_argnums=0)
def stable_rank(operator: LinearOperator, w: jax.Array, sigma: Any) -> jax.Array:
  """Of one operator, from its spectral norm."""
  w = w.astype(triplet_dtype(w))
  if not isinstance(operator, Dense | Diagonal):
    sides = operator.input_shape, operator.output_shape
    uses = operator.weight_gradient(w.shape, *(jnp.ones(of(w.shape), w.dtype) for of in sides))
    w = w * jnp.sqrt(uses)
  return jnp.square(frobenius_norm(operator, w) / nonzero(sigma))
