r"""Certified Lipschitz bounds of a chain of matrices and elementwise functions.

A chain of any scale is brought into one form first, `Layer`: the slopes' magnitudes become
part of the next matrix, and powers of two, which round nothing, make every matrix's norm lie
between ½ and 1. The engines see that form only; see `lipjax.certify.bounds.chain_engines` and
`lipjax.certify.bounds.eclipse`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lipjax.certify.bounds.chain_engines import Layer, magnitude
from lipjax.certify.bounds.chain_products import (
  exponent_of,
  magnitude_norm,
  norms_above,
  over_layers,
  times_power_of_two,
)
from lipjax.certify.bounds.eclipse import eclipse
from lipjax.measure.scaling import nonzero
from lipjax.rounding.errors import unit_roundoff, up

#: Widths up to this are made the same in all layers.
PADDED_UP_TO = 128
ENGINES = {"magnitude": magnitude, "eclipse": eclipse}
#: A slope's lower or upper end: one for all neurons or one each.
SlopeEnd = Any


def chain_upper_bounds(
  weights: Sequence[jax.Array], slopes: Sequence[tuple[SlopeEnd, SlopeEnd]]
) -> dict[str, jax.Array]:
  r"""Upper bounds by engine of the l2 Lipschitz constant of a chain; the smallest counts.

  The chain is :math:`x \mapsto W_l\,\phi_{l-1}(W_{l-1} \cdots \phi_1(W_1 x))` with shifts
  anywhere. Of the elementwise :math:`\phi_i` nothing is known but that
  :math:`\alpha \le (\phi_i(s) - \phi_i(t))/(s - t) \le \beta`, for each neuron.

  =============  ============================================================================
  engine         bound
  =============  ============================================================================
  ``magnitude``  the norm of the product of magnitudes; the best there is for weights without
                 negative entries and :math:`|\alpha| \le \beta`
  ``eclipse``    a feasible point of the semidefinite program, in closed form; slopes
                 :math:`\alpha \ge 0` only
  =============  ============================================================================

  Guarantee: each is an upper bound with rounding included, of the weights as they are
  stored, derived from eps and sizes. What that costs grows with width and depth; in float32
  it was 3e-4 for four layers of width 256 and 6e-4 for 32 of width 8. It rests on the
  rounding model of `lipjax.rounding.errors`; numbers too small to be normal count as 0 in a
  weight.

  Args:
    weights: :math:`W_i`, each ``(outputs, inputs)``, of any floating dtype; computed in
      float32 or wider.
    slopes: :math:`(\alpha_i, \beta_i)` of each :math:`\phi_i`, each a scalar or of shape
      ``(outputs of W_i,)``. Concrete ones are rounded outwards to the dtype that is computed
      in, traced ones widen it.

  Returns:
    ``{engine: bound}``, scalars. ``eclipse`` is left out if a concrete :math:`\alpha` is
    negative, and infinite if a traced one is. A zero weight gives 0, a NaN or an infinity
    anywhere gives NaN. Differentiable in weights and traced slopes, but for
    the margins.

  Raises:
    ValueError: shapes that do not fit, or a concrete :math:`\alpha > \beta`.

  Reference:
    Xu & Sivaranjani (2024), arXiv:2404.04375 (``eclipse``, ECLipsE-Fast); Higham (2002),
    Accuracy and Stability of Numerical Algorithms, section 3 (rounding).
  """
  weights = [jnp.asarray(w) for w in weights]
  _check(weights, slopes)
  dtype = _dtype(weights, slopes)
  if any(w.size == 0 for w in weights):
    return dict.fromkeys(ENGINES, jnp.zeros((), dtype))
  ends = [
    (_slope_end(alpha, w.shape[0], dtype, -1), _slope_end(beta, w.shape[0], dtype, 1))
    for (alpha, beta), w in zip(slopes, weights, strict=False)
  ]
  signs = [_is_nonnegative(alpha) for alpha, _ in slopes]
  # Small layers are made equally wide by neurons that do nothing, so that few programs are
  # compiled.
  width = max((n for w in weights for n in w.shape if n <= PADDED_UP_TO), default=1)
  width = 1 << (width - 1).bit_length()
  ends = [(_padded(alpha, width), _padded(beta, width)) for alpha, beta in ends]
  weights = [_padded(w.astype(dtype), width) for w in weights]
  engines = ENGINES if not any(sign is False for sign in signs) else ("magnitude",)
  bounds = _bounds(weights, ends, engines=tuple(engines))
  for sign in signs:
    if "eclipse" in bounds and sign is not True:
      bounds["eclipse"] = jnp.where(sign, bounds["eclipse"], jnp.inf)
  return bounds


@functools.partial(jax.jit, static_argnames="engines")
def _bounds(
  weights: list[jax.Array], ends: list[tuple[jax.Array, jax.Array]], *, engines: tuple[str, ...]
) -> dict[str, jax.Array]:
  layers, exponent, is_live = _layers(weights, ends)
  is_finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((weights, ends))]))
  tiny = float(jnp.finfo(weights[0].dtype).tiny)
  bounds = {}
  for name in engines:
    factor, more = ENGINES[name](layers)
    # A result too small to be normal may have become 0.
    bound = jnp.maximum(times_power_of_two(up(factor), exponent + more), tiny)
    bounds[name] = jnp.where(is_finite, jnp.where(is_live, bound, 0), jnp.nan)
  return bounds


def _padded(x: Any, width: int) -> jax.Array:
  """Zeros at the end of each axis that is shorter than `width`."""
  return jnp.pad(jnp.asarray(x), [(0, max(width - n, 0)) for n in x.shape])


def _layers(
  weights: list[jax.Array], ends: list[tuple[jax.Array, jax.Array]]
) -> tuple[list[Layer], jax.Array, jax.Array]:
  """The chain's form for the engines, the power of two left out, and whether it is not 0."""
  dtype = weights[0].dtype
  unit, tiny = unit_roundoff(dtype), float(jnp.finfo(dtype).tiny)
  sizes = [jnp.ones(weights[0].shape[1], dtype), *(jnp.maximum(*map(jnp.abs, x)) for x in ends)]

  def fold(_, layer):
    w, size = layer
    # Whether anything is left is said by the numbers that were given, not by products.
    is_live = jnp.any((w != 0) & (size != 0))
    w, k = _scaled(w)
    size, more = _scaled(size)
    # Ones in place of 0, for the derivatives of what does not count then.
    return None, (jnp.where(is_live, w * size, 1), k + more, is_live)

  def normalize(_, layer):
    matrix, norm, k = layer
    # The scalings can have made 0 of what was above `tiny`, and the product as well.
    grain = jnp.asarray(4 * tiny, dtype)
    lost = lambda matrix, grain: up(2 * unit * magnitude_norm(matrix) + grain * matrix.size**0.5)
    norm = up(norm + lost(matrix, grain))
    more = exponent_of(norm)
    matrix, grain, norm = (times_power_of_two(x, -more) for x in (matrix, grain, norm))
    # So can this one.
    grain = up(grain) + 2 * tiny
    return None, ((matrix, lost(matrix, grain), grain, norm), k + more)

  _, folded = over_layers(fold, None, list(zip(weights, sizes, strict=True)))
  matrices, exponents, live = zip(*folded, strict=True)
  norms = norms_above(matrices)
  _, parts = over_layers(normalize, None, list(zip(matrices, norms, exponents, strict=True)))
  _, slopes = over_layers(lambda _, pair: (None, _relative(*pair)), None, ends)
  exponent = sum((k for _, k in parts), jnp.zeros((), jnp.int32))
  layers = [
    Layer(*scaled, *pair) for (scaled, _), pair in zip(parts, [*slopes, (None, None)], strict=True)
  ]
  return layers, exponent, jnp.all(jnp.stack(live))


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`x` times a power of two so that its largest magnitude is near 1, and what is left out."""
  k = exponent_of(jnp.max(jnp.abs(x)))
  return times_power_of_two(x, -k), k


def _relative(alpha: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The slopes divided by the larger magnitude of the two, rounded outwards."""
  size = nonzero(jnp.maximum(jnp.abs(alpha), jnp.abs(beta)))
  wider = 4 * unit_roundoff(alpha.dtype)
  ends = []
  for end, sign in ((alpha, -1), (beta, 1)):
    ratio = end / size
    # One of the two is 1 or -1 exactly, and equal slopes stay equal.
    moved = jnp.clip(ratio + sign * wider * jnp.abs(ratio), -1, 1)
    ends.append(jnp.where(jnp.abs(end) == size, ratio, moved))
  return ends[0], ends[1]


def _slope_end(end: SlopeEnd, n: int, dtype, side: int) -> Any:
  """An end of the slopes for each neuron, in the dtype computed in."""
  if isinstance(end, Tracer):
    return jnp.broadcast_to(end.astype(dtype), (n,))
  exact, tiny = np.asarray(end, np.float64), float(jnp.finfo(dtype).tiny)
  with np.errstate(over="ignore", under="ignore"):
    rounded = exact.astype(dtype)
    outwards = np.nextafter(rounded, np.asarray(side * np.inf, dtype))
  rounded = np.where((rounded - exact) * side < 0, outwards, rounded)
  # What is too small to be normal counts as 0 in arithmetic.
  normal = np.where(exact * side > 0, side * tiny, 0)
  rounded = np.where((exact != 0) & (np.abs(exact) < tiny), normal, rounded)
  return np.broadcast_to(rounded.astype(dtype), (n,))


def _is_nonnegative(alpha: SlopeEnd) -> Any:
  """Whether no slope is negative: a bool, or an array if that is traced."""
  if isinstance(alpha, Tracer):
    return jnp.all(alpha >= 0)
  return bool(np.all(np.asarray(alpha) >= 0))


def _dtype(weights: list[jax.Array], slopes: Sequence[tuple[SlopeEnd, SlopeEnd]]) -> jnp.dtype:
  traced = [end for ends in slopes for end in ends if isinstance(end, Tracer)]
  return jnp.result_type(jnp.float32, *weights, *traced)


def _check(weights: list[jax.Array], slopes: Sequence[tuple[SlopeEnd, SlopeEnd]]) -> None:
  if not weights or len(slopes) != len(weights) - 1:
    msg = f"A chain has one pair of slopes between two weights; got {len(weights)} weights and"
    msg = f"{msg} {len(slopes)} pairs."
    raise ValueError(msg)
  for i, w in enumerate(weights):
    if w.ndim != 2 or (i and w.shape[1] != weights[i - 1].shape[0]):
      before = f" and the one before has {weights[i - 1].shape[:1]} outputs" if i else ""
      msg = f"Weights have shape (outputs, inputs); weight {i} has shape {w.shape}{before}."
      raise ValueError(msg)
  for i, (alpha, beta) in enumerate(slopes):
    n = weights[i].shape[0]
    for end in (alpha, beta):
      if jnp.shape(end) not in ((), (n,)):
        msg = f"Slopes {i} must be scalars or of shape ({n},), one each; got {jnp.shape(end)}."
        raise ValueError(msg)
    is_known = not isinstance(alpha, Tracer) and not isinstance(beta, Tracer)
    if is_known and np.any(np.asarray(alpha) > np.asarray(beta)):
      msg = f"Slopes {i} have a lower end above the upper end."
      raise ValueError(msg)
