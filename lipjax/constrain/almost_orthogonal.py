"""Weights of norm at most 1 by rescaling, exactly orthogonal where they nearly are."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.measure.scaling import nonzero
from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.products import compute_dtype
from lipjax.operators.resolve import Overrides, resolve_operators
from lipjax.rounding.errors import up


def almost_orthogonalize(
  params: Any, *, layout: Layout | None = None, layout_overrides: Overrides | None = None
) -> Any:
  r"""Every operator rescaled to a norm of at most 1: almost-orthogonal layers (AOL).

  A matrix becomes :math:`W D`, each input divided by the root of how much it overlaps with all:

  .. math:: D_{ii} = \Big(\sum_j |W^T W|_{ij}\Big)^{-1/2}, \qquad \|W D\|_2 \le 1,

  with equality where its columns are orthogonal. If there are fewer outputs than inputs, outputs
  are rescaled, by :math:`W W^T`. Of a `Convolution` one channel has one factor, from the kernel's
  correlations with itself at all shifts: strides, dilations, groups and transposed ones included,
  with zeros around the input or on a circle.

  A parametrization: raw params are trained, the network is applied with the result, and a plain
  Dense or Conv runs it afterwards::

    logits = model.apply(lipjax.almost_orthogonalize(raw), x)

  It takes one product of the weight with itself; a random matrix gets a norm well below 1.

  Guarantee: :math:`\sigma_1 \le 1 + 4\epsilon\sqrt r`, with :math:`r` the smaller dimension and
  :math:`\epsilon` that of the params' dtype; 1 in exact arithmetic, the margin for rounding is
  checked and not proved.

  Args:
    params: a pytree of arrays. Computed in float32 or wider.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes; a `Diagonal` becomes its signs. What is zero stays zero,
    with finite derivatives. A slice with a NaN or an infinity is NaN.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: a convolution whose padding reflects or repeats the input.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> raw = {"kernel": jax.random.normal(jax.random.key(0), (64, 16))}
    >>> norm = lambda params: float(lipjax.spectral_norms(params)["kernel"])
    >>> norm(raw) > 10, norm(lipjax.almost_orthogonalize(raw)) < 1
    (True, True)

  Reference:
    Prach & Lampert (2022), arXiv:2208.03160, theorems 1 and 2.
  """
  operators, leaves = resolve_operators(params, layout, layout_overrides), float_leaves(params)
  for path, operator in operators.items():
    if isinstance(operator, Convolution):
      _check(path, operator, leaves[path].shape)

  def visit(path: str, w: jax.Array) -> jax.Array:
    return _rescaled(operators[path], w) if path in operators and w.size else w

  return map_float_leaves(visit, params)


@functools.partial(jax.jit, static_argnums=0)
def _rescaled(operator: LinearOperator, w: jax.Array) -> jax.Array:
  """One leaf, each slice of a stack by itself."""
  wide = w.astype(compute_dtype(w.dtype))
  if isinstance(operator, Diagonal):
    return jnp.sign(wide).astype(w.dtype)
  if isinstance(operator, Dense):
    return operator.leaf(_matrix(operator.matrix(wide)), w.shape).astype(w.dtype)
  if not isinstance(operator, Convolution):
    msg = f"{operator!r} has no almost-orthogonal form: it is neither a matrix nor a convolution."
    raise ValueError(msg)
  of_slice = functools.partial(_convolution, operator.slice_operator())
  # Innermost first: the last one wrapped is the first one taken away.
  for axis in sorted(operator.batch_axes):
    of_slice = jax.vmap(of_slice, in_axes=axis, out_axes=axis)
  return of_slice(wide).astype(w.dtype)


def _matrix(matrix: jax.Array) -> jax.Array:
  """Of (…, outputs, inputs): the side that has fewer is rescaled."""
  is_wide = matrix.shape[-1] > matrix.shape[-2]
  tall = jnp.swapaxes(matrix, -1, -2) if is_wide else matrix
  tall = tall / nonzero(jnp.max(jnp.abs(tall), axis=(-2, -1), keepdims=True))
  inner = jnp.matmul(jnp.swapaxes(tall, -1, -2), tall, precision=lax.Precision.HIGHEST)
  tall = tall * _inverse_root(jnp.sum(jnp.abs(inner), axis=-1))[..., None, :]
  return jnp.swapaxes(tall, -1, -2) if is_wide else tall


def _convolution(operator: Convolution, w: jax.Array) -> jax.Array:
  """Of one kernel: with all outputs that shifts could give it is no smaller than with some."""
  order = (operator.out_axis, operator.in_axis, *operator.spatial_axes)
  kernel, groups = w.transpose(order), operator.feature_group_count
  kernel = kernel.reshape((groups, kernel.shape[0] // groups, *kernel.shape[1:]))
  scaled = jax.vmap(_group)(kernel / nonzero(jnp.max(jnp.abs(kernel))))
  return scaled.reshape([w.shape[axis] for axis in order]).transpose(np.argsort(order))


def _group(kernel: jax.Array) -> jax.Array:
  """(outputs, inputs, *taps)."""
  is_wide = kernel.shape[1] > kernel.shape[0]
  tall = kernel if not is_wide else jnp.swapaxes(kernel, 0, 1)
  factors = _inverse_root(jnp.sum(overlaps(jnp.swapaxes(tall, 0, 1)), axis=1))
  tall = tall * factors.reshape((1, -1) + (1,) * (kernel.ndim - 2))
  return tall if not is_wide else jnp.swapaxes(tall, 0, 1)


def overlaps(channels: jax.Array) -> jax.Array:
  """What two channels (n, features, *taps) share, in magnitude, at all shifts together: (n, n).

  By one product of all taps with all others, and the sum of those at the same distance: a
  convolution of the two would have one of a large window for its derivative.
  """
  n, features, *taps = channels.shape
  flat = jnp.moveaxis(channels, 1, -1).reshape((-1, features))
  inner = jnp.matmul(flat, flat.T, precision=lax.Precision.HIGHEST)
  inner = inner.reshape((n, *taps, n, *taps))
  for left in range(len(taps), 0, -1):  # the first axis of each, one after the other
    inner = _by_distance(jnp.moveaxis(inner, (1, 2 + left), (-2, -1)))
  return jnp.sum(jnp.abs(inner), axis=range(2, inner.ndim))


def _by_distance(x: jax.Array) -> jax.Array:
  """Of the last two axes, both of length k, the sums at each of the 2k - 1 distances."""
  k = x.shape[-1]
  # Rows of a length of 2k, read as rows of 2k - 1, move by one from each to the next.
  padded = jnp.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, k)])
  rows = padded.reshape((*x.shape[:-2], 2 * k * k))[..., :-k]
  return jnp.sum(rows.reshape((*x.shape[:-2], k, 2 * k - 1)), axis=-2)


def _inverse_root(overlap: jax.Array) -> jax.Array:
  """1, and no derivative, where there is no overlap: there the weights are 0."""
  is_zero = overlap == 0
  return jnp.where(is_zero, 1, up(jnp.where(is_zero, 1, overlap)) ** -0.5)


def _check(path: str, operator: Convolution, shape: tuple[int, ...]) -> None:
  """Raises where the padded input can be longer than the input."""
  windows = operator.windows(shape)
  if all(w.mode == "zeros" for w in windows):
    return
  if all(w.mode == "circular" and w.outputs * w.stride <= w.circle for w in windows):
    return
  msg = (
    f"{path!r} is {operator!r}, whose padding can make inputs longer: almost-orthogonal"
    " convolutions need zeros around the input, or a circle that is gone round once."
  )
  raise ValueError(msg)
