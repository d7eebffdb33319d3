"""Intervals that contain the norm of every operator in a params tree."""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.measure.convolution_bounds import convolution_upper_bounds
from lipjax.measure.derivatives import differentiable_sigma
from lipjax.measure.gram import gram_upper_bound
from lipjax.measure.groups import Group, group_leaves, map_weights, stack_weights
from lipjax.measure.lower_bound import norm_lower_bound
from lipjax.measure.norms import measure_group, over_slices
from lipjax.measure.sharding import replicated_result
from lipjax.measure.triplet import SingularTriplet
from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.dense import Dense
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves
from lipjax.operators.products import compute_dtype
from lipjax.operators.resolve import Overrides, resolve_operators


class BoundMethod(enum.IntEnum):
  """Where an upper bound comes from; see `spectral_norm_bounds` and `lipschitz_bounds`.

  Guarantee: all are certified but ``KRYLOV``, which fails with a stated probability.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> bounds = lipjax.spectral_norm_bounds({"kernel": jnp.eye(3)})["kernel"]
    >>> lipjax.BoundMethod(int(bounds.method)).name
    'GRAM'
  """

  EXACT = 0
  GRAM = 1
  MATRIX = 2
  CIRCULANT = 3
  GRID = 4
  UNFOLDING = 5
  KRYLOV = 6
  PRODUCT = 7
  LIPLT = 8
  ELLIPSOID = 9


class Bounds(NamedTuple):
  r"""An interval that contains a norm.

  Guarantee: ``lower <= norm <= upper``, rounding included, for the weights as they are
  stored.

  Attributes:
    lower: reached at a vector that was found.
    upper: proved.
    method: which bound `upper` is, int32, a `BoundMethod` each; see `names`.
  """

  lower: Any
  upper: Any
  method: Any

  @property
  def names(self) -> Any:
    """The method's name in lower case, or an array of names; concrete values only."""
    names = np.array([method.name.lower() for method in BoundMethod])[np.asarray(self.method)]
    return str(names) if names.ndim == 0 else names


def spectral_norm_bounds(
  params: Any,
  *,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
  key: jax.Array | None = None,
) -> dict[str, Bounds]:
  r"""An interval around the spectral norm of every operator in a params tree.

  ===============  ==========================================================================
  operator         upper end
  ===============  ==========================================================================
  `Dense`          ``gram``: a Schatten norm of high order, by Gram iteration
  `Diagonal`       ``exact``: the largest magnitude, which is the lower end too
  `Convolution`    ``matrix`` (its matrix in blocks, by a Cholesky factor) where that is
                   affordable; else the smallest of ``circulant`` (the symbols on a circle it
                   embeds in), ``grid`` (symbols on a coarser grid, and what may lie between)
                   and ``unfolding`` (windows that overlap little)
  ===============  ==========================================================================

  The lower end is :math:`\|B(w, v)\|/\|v\|` at the vector that Golub–Kahan–Lanczos ends
  with, so the interval is nearly as wide as the upper end is high.

  Guarantee: ``lower <= norm <= upper`` with rounding included, derived from eps and sizes;
  `gram_upper_bound`, `convolution_upper_bounds` and `norm_at` in `lipjax.measure` say how.
  It rests on the rounding model of IEEE arithmetic, which CPUs and GPUs keep. Weights are
  taken as stored: a bfloat16 leaf has the norm of its rounded entries. Widths,
  ``upper / lower - 1``: matrices in float32 below 1e-3 up to 512 (smaller dimension), growing
  with it; convolutions see docs, "What is the norm of a convolution?".

  The norm of a `ReshapedKernel` is that of the reshaped matrix, not of the convolution.

  Args:
    params: a pytree of arrays of any floating dtype; computed in float32 or wider.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.
    key: of the random start of the lower end; a fixed key when None.

  Returns:
    ``{path: Bounds}``, each of the operator's batch shape, float32 or wider. Zero and empty
    operators give (0, 0), a slice with a NaN or an infinity (NaN, NaN). Both ends are
    differentiable: the lower one as :math:`\sigma_1` is, the upper one as the norm that it
    bounds.

  Raises:
    LayoutError: a leaf that the layout cannot tell.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 1, 1))}}
    >>> layout = {"Conv_0/kernel": lipjax.Convolution((16, 16))}
    >>> bounds = lipjax.spectral_norm_bounds(params, layout=layout)["Conv_0/kernel"]
    >>> f"{bounds.lower:.3f} {bounds.upper:.3f} {bounds.names}"
    '8.797 8.797 matrix'

  Reference:
    Delattre et al. (2023), arXiv:2305.16173 (Gram iteration); Sedghi et al. (2019),
    arXiv:1805.10408 (symbols); Higham (2002), Accuracy and Stability of Numerical
    Algorithms, section 3 (rounding).
  """
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  key = jax.random.key(0) if key is None else key
  run = functools.partial(_group_bounds, key=key)
  found = {}
  for group in group_leaves(operators, leaves):
    found |= measure_group(run, group, [jnp.asarray(leaves[path]) for path in group.paths])
  return dict(sorted(found.items()))


@functools.partial(jax.jit, static_argnames="group")
def _group_bounds(group: Group, weights: list[jax.Array], *, key: jax.Array) -> Bounds:
  """Stacked intervals of the leaves of a group."""

  def run(weights, key):
    one = functools.partial(slice_bounds, key=key)
    bounds = functools.partial(over_slices, one, group.operator)
    return map_weights(bounds, stack_weights(group, weights))

  return replicated_result(run, weights)(weights, key)


def slice_bounds(operator: LinearOperator, w: jax.Array, *, key: jax.Array) -> Bounds:
  """The interval of one operator without batch axes."""
  dtype = compute_dtype(w.dtype)
  if 0 in (*w.shape, *operator.input_shape(w.shape), *operator.output_shape(w.shape)):
    zero = jnp.zeros((), dtype)
    return Bounds(zero, zero, jnp.asarray(BoundMethod.EXACT, jnp.int32))
  w = w.astype(dtype)
  if operator.has_closed_form:
    triplet = SingularTriplet(*operator.closed_form(lax.stop_gradient(w)))
    sigma = differentiable_sigma(operator, w, triplet).sigma
    return Bounds(sigma, sigma, jnp.asarray(BoundMethod.EXACT, jnp.int32))
  lower = norm_lower_bound(operator, w, key)
  uppers = _upper_bounds(operator, w, lower)
  stacked = jnp.stack(list(uppers.values()))
  # Nothing is known of a weight that is not finite.
  known = jnp.isfinite(w).all()
  upper = jnp.where(known, jnp.min(stacked), jnp.nan)
  methods = jnp.array([BoundMethod[name.upper()] for name in uppers], jnp.int32)
  lower = jnp.where(known, lower, jnp.nan)
  return Bounds(lower, upper, methods[jnp.argmin(stacked)])


def _upper_bounds(operator: LinearOperator, w: jax.Array, lower: jax.Array) -> dict[str, jax.Array]:
  if isinstance(operator, Dense):
    return {"gram": gram_upper_bound(operator.matrix(w))}
  if isinstance(operator, Convolution):
    return convolution_upper_bounds(operator, w, lower)
  msg = (
    f"{operator!r} has no certified bound; lipjax.operator_norm_bounds bounds any linear"
    " function, with a probability."
  )
  raise ValueError(msg)
