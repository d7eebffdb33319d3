"""Linear functions with certified norms: products with weights, scalings, moved entries."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.facts import Depends, LinearPart, Operand, Pointwise, Shifts
from lipjax.certify.fast import fast_jit
from lipjax.certify.norms import Norm
from lipjax.measure.convolution_bounds import convolution_upper_bounds
from lipjax.measure.gram import gram_upper_bound
from lipjax.operators.convolution import Convolution
from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import max_magnitude, times_above, tiny


@dataclasses.dataclass(frozen=True)
class Weight:
  """A weight that a linear part multiplies with.

  Attributes:
    value: the array.
    features: for each axis of the result the axis of `value` that it is, or None.
    part: the linear part with another value, and at least the norm of what that has lost.
    lost: at least that of this one.
  """

  value: jax.Array
  features: tuple[int | None, ...]
  part: Callable[[jax.Array, Any], LinearPart]
  lost: Any = 0.0


def moved(apply: Callable[..., jax.Array], copies: float = 1) -> LinearPart:
  """Entries that are moved or left out, or copied at most so many times."""
  norm = math.sqrt(copies) * (1 + 1e-6) if copies > 1 else 1.0
  roundings = math.ceil(copies) if copies > 1 else 0
  return LinearPart(apply, (lambda: norm,), roundings=roundings, magnitude=apply, is_selection=True)


def same(apply: Callable[..., jax.Array]) -> LinearPart:
  """Entries as they are, but for their dtype."""
  return dataclasses.replace(moved(apply), on_images=Pointwise((1.0,)))


def merged(apply: Callable[..., jax.Array], operands: Sequence[Operand]) -> Depends:
  """Of operands that move, or do not, a node each of whose entries is an entry of one of them."""
  linear = of_moving(apply, operands)
  norms = tuple((lambda: 1.0) for x in operands if x.moves)
  part = LinearPart(linear, norms, is_disjoint=True, magnitude=linear, is_selection=True)
  return Depends(part, parents(operands))


def of_moving(
  apply: Callable[..., jax.Array], operands: Sequence[Operand]
) -> Callable[..., jax.Array]:
  """The linear function of what moves among the operands, with 0 for the others."""

  def linear(*values: jax.Array) -> jax.Array:
    left, dtype = iter(values), jnp.result_type(*values)
    zero = lambda x: jnp.zeros(x.shape, dtype)
    return apply(*(next(left).astype(dtype) if x.moves else zero(x) for x in operands))

  return linear


def parents(operands: Sequence[Operand]) -> tuple[int, ...]:
  """The places of those that move."""
  return tuple(x.place for x in operands if x.moves)


def shifted(x: Operand) -> Depends:
  """A node plus a constant: the same linear map of the same parents."""
  if isinstance(x.facts.depends.part, LinearPart):
    return x.facts.depends._replace(multiple=x.multiple, gain=1.0)
  return Depends(same(lambda value: value), (x.place,), x.multiple)


def scaled(factor: Any) -> LinearPart:
  """Entries times constants, one for each or of a shape that broadcasts."""
  return LinearPart(
    lambda x: x * factor,
    (functools.cache(lambda: up(max_magnitude(factor))),),
    roundings=2,  # That of an inverse is one of them.
    magnitude=lambda x: x * jnp.abs(factor),
    on_images=Pointwise((factor,)),
  )


def times(x: Operand, factor: Any, shape: tuple[int, ...]) -> Depends:
  """A node times constants; folded into the weight where it is the product with one."""
  factor, part = jnp.asarray(factor, x.node.wide), x.facts.depends.part
  if isinstance(part, LinearPart) and isinstance(part.weight, Weight) and x.shape == shape:
    folded = _folded(part.weight, factor, len(shape))
    if folded is not None:
      return Depends(folded, x.facts.depends.parents, gain=up(max_magnitude(factor)))
  return Depends(scaled(factor), (x.place,))


def _folded(weight: Weight, factor: jax.Array, ndim: int) -> LinearPart | None:
  factor = factor.reshape((1,) * (ndim - factor.ndim) + factor.shape)
  places = {}
  for axis, length in enumerate(factor.shape):
    place = weight.features[axis]
    if length != 1 and place is None:
      return None
    if length != 1:
      places[axis] = place
  axes = sorted(places, key=places.__getitem__)
  shape = [1] * weight.value.ndim
  for axis in axes:
    shape[places[axis]] = factor.shape[axis]
  rest = [axis for axis in range(ndim) if axis not in places]
  factor = factor.transpose(axes + rest).reshape(shape)
  return weight.part(*_scaled_weight(weight.value, weight.lost, factor))


@fast_jit()
def _scaled_weight(weight: jax.Array, lost: Any, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of a folded weight the values, and at least the norm of what they lack."""
  is_live = (weight != 0) & (factor != 0)
  product = weight * factor
  size, low = jnp.abs(product), tiny(product.dtype)
  # What is too small: every tap of a convolution by itself has a norm of at most its magnitude.
  flushed = 2 * low * jnp.sum(is_live & (size < 2 * low), dtype=product.dtype)
  return product, up(times_above(lost, max_magnitude(factor)) + flushed)


def dot_part(
  weight: jax.Array,
  lost: Any = 0.0,
  *,
  dimensions: Any,
  x_ndim: int,
  is_left: bool,
  n_folded: int = 0,
) -> LinearPart:
  """``lax.dot_general`` of a constant, left or right, and an array with `x_ndim` axes."""
  (left, right), (left_batch, right_batch) = dimensions
  contract, batch = (left, left_batch) if is_left else (right, right_batch)
  free = [i for i in range(weight.ndim) if i not in (*contract, *batch)]

  def product(w, x):
    pair = (w, x) if is_left else (x, w)
    return lax.dot_general(*pair, dimensions, precision=lax.Precision.HIGHEST)

  rank = min(math.prod(weight.shape[i] for i in axes) for axes in (free, contract))
  rounded = lambda sigma: _with_folding(sigma, n_folded, rank) + lost
  norm = Norm(_matrix_norm, weight, (tuple(batch), tuple(free), tuple(contract)), rounded=rounded)

  others = [None] * (x_ndim - len(contract) - len(batch))
  features = (*batch, *free, *others) if is_left else (*batch, *others, *free)
  part = functools.partial(
    dot_part, dimensions=dimensions, x_ndim=x_ndim, is_left=is_left, n_folded=n_folded + 1
  )
  return LinearPart(
    functools.partial(product, weight),
    (norm,),
    roundings=max(math.prod(weight.shape[i] for i in axes) for axes in (free, contract)),
    magnitude=lambda x: product(jnp.abs(weight), x),
    weight=Weight(weight, features, part, lost),
    lost=lost if n_folded else None,
  )


def convolution_part(
  weight: jax.Array,
  lost: Any = 0.0,
  *,
  x_shape: tuple[int, ...],
  params: dict[str, Any],
  n_folded: int = 0,
) -> LinearPart:
  """``lax.conv_general_dilated`` with a constant kernel."""
  lhs, rhs, out = params["dimension_numbers"]
  operator = Convolution(
    tuple(x_shape[i] for i in lhs[2:]),
    strides=params["window_strides"],
    padding=params["padding"],
    input_dilation=params["lhs_dilation"],
    kernel_dilation=params["rhs_dilation"],
    feature_group_count=params["feature_group_count"],
  )
  options = {name: params[name] for name in _CONVOLUTION_OPTIONS}

  def product(w, x):
    # Rows are wider than a weight in bfloat16.
    dtype = jnp.promote_types(x.dtype, w.dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    return lax.conv_general_dilated(x, w, precision=lax.Precision.HIGHEST, **options)

  taps = math.prod(weight.shape[i] for i in rhs[2:])
  rank = taps * min(weight.shape[i] for i in rhs[:2])
  rounded = lambda sigma: _with_folding(sigma, n_folded, rank) + lost
  norm = Norm(_convolution_norm, weight, operator, tuple(rhs), rounded=rounded)

  features: list[int | None] = [None] * len(out)
  features[out[1]] = rhs[0]
  part = functools.partial(convolution_part, x_shape=x_shape, params=params, n_folded=n_folded + 1)
  return LinearPart(
    functools.partial(product, weight),
    (norm,),
    roundings=max(math.prod(weight.shape) // weight.shape[i] for i in rhs[:2]),
    magnitude=lambda x: product(jnp.abs(weight), x),
    weight=Weight(weight, tuple(features), part, lost),
    lost=lost if n_folded else None,
    on_images=Shifts(weight, params, n_folded, lost),
  )


# Compiled once a shape: a network has many layers of few shapes.
@fast_jit(static_argnums=(0,))
def _matrix_norm(axes: tuple[tuple[int, ...], ...], weight: jax.Array) -> jax.Array:
  """The largest norm of the matrices with batch axes, rows and columns."""
  batch, free, contract = axes
  matrix = jnp.transpose(weight, (*batch, *free, *contract)).astype(compute_dtype(weight.dtype))
  rows, columns = (math.prod(weight.shape[i] for i in side) for side in (free, contract))
  return jnp.max(gram_upper_bound(matrix.reshape((-1, rows, columns))), initial=0)


@fast_jit(static_argnums=(0, 1))
def _convolution_norm(operator: Convolution, axes: tuple[int, ...], weight: jax.Array) -> jax.Array:
  kernel = jnp.transpose(weight, (*axes[2:], axes[1], axes[0]))
  # One that overflows may be no number, and the other still a bound.
  return functools.reduce(jnp.fmin, convolution_upper_bounds(operator, kernel).values())


def _with_folding(sigma: jax.Array, n_folded: int, rank: int) -> jax.Array:
  r"""A norm with what rounding a scaling of the weights can add.

  An entry is off by at most u times itself, so a matrix A by :math:`u\||A|\|_2 \le
  u\|A\|_F \le u\sqrt r\,\|A\|_2`; of a convolution every tap counts.
  """
  return sigma * (1 + 4 * n_folded * unit_roundoff(sigma.dtype) * math.sqrt(rank))


_CONVOLUTION_OPTIONS = (
  "window_strides",
  "padding",
  "lhs_dilation",
  "rhs_dilation",
  "dimension_numbers",
  "feature_group_count",
)


def window_sum_norm(windows, strides, dilations) -> Any:
  """At most the norm of summing windows: √(entries of a window · windows of an entry)."""
  reads = math.prod(
    math.ceil(k / s) if d == 1 else k for k, s, d in zip(windows, strides, dilations, strict=True)
  )
  return up(jnp.sqrt(jnp.asarray(float(math.prod(windows) * reads))))
