r"""Layer norm, RMS norm and group norm, however they are written.

The Jacobian of :math:`y = (x - m)/s`, :math:`s^2 = a\,\mathrm{var}(x) + \varepsilon`, is
:math:`\frac1s(C - \frac{a}{n s^2} c c^\top)` with the centering C and :math:`c = Cx`. It is
symmetric with the eigenvalues 0, 1/s and :math:`\varepsilon/s^3 \le 1/s`, so that 1/s at the
smallest variance is a Lipschitz constant, row by row. For :math:`y = x/s`,
:math:`s^2 = a\,\mathrm{mean}(x^2) + \varepsilon`, the same holds without C.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.graph import LinearPart, LipschitzPart, Node, Recipe
from lipjax.certify.linear_parts import scaled_node
from lipjax.certify.magnitudes import norm_above, norm_below, times_above, tiny
from lipjax.certify.range_rules import Range, range_rule, widened
from lipjax.certify.ranges import full_range, movement, value_range
from lipjax.certify.rules.moments import CENTERED, X, is_mean_square, is_variance, statistic
from lipjax.measure.rounding import down, unit_roundoff, up
from lipjax.operators.products import compute_dtype


class Normalization(NamedTuple):
  """Of x by rows: what is subtracted and divided by.

  Attributes:
    rows: the entries of x, flat, in each row.
    scale: a, of the variance or the mean square.
    epsilon: what is added to it.
    is_centered: whether the row's mean is subtracted.
  """

  rows: np.ndarray
  scale: float
  epsilon: float
  is_centered: bool


def normalized(factor: Any, inverse: Any, aval: Any) -> Node | None:
  """``factor * inverse`` if that is a normalized array, times constants; else None."""
  found = _inverse_root(inverse)
  if found is None:
    return None
  root, gain = found
  for x in _candidates(factor):
    what = _match(factor, root, x)
    if what is not None and factor.shape == aval.shape:
      node = _node(what, x, factor.aval)
      if gain is None:
        return node
      recipe = Recipe("mul", {}, (node, gain), jnp.multiply)
      return scaled_node(node, gain, aval, recipe=recipe)
  return None


def quotient(factor: Any, root: Any, aval: Any) -> Node | None:
  """``factor / root`` likewise, with ``root = sqrt(…)``."""
  source = root
  while _is_moved(source):
    source = source.parents[0]
  if not _is(source, "sqrt") or factor.shape != aval.shape:
    return None
  for x in _candidates(factor):
    what = _match(factor, root, x, name="sqrt")
    if what is not None:
      return _node(what, x, aval)
  return None


def _inverse_root(node: Any) -> tuple[Node, Any] | None:
  """The node that copies of ``rsqrt(…)`` are in, and the constants that it is multiplied by."""
  gain = None
  while _is(node, "mul"):
    factors = [x for x in node.recipe.operands if isinstance(x, Node)]
    constants = [x for x in node.recipe.operands if not isinstance(x, Node)]
    if len(factors) != 1:
      return None
    # Not in half precision, where the product is rounded by up to a part in 256.
    factor = jnp.asarray(constants[0], compute_dtype(node.aval.dtype))
    gain = factor if gain is None else gain * factor
    node = factors[0]
  source = node
  while _is_moved(source):
    source = source.parents[0]
  return (node, gain) if _is(source, "rsqrt") else None


def _is_moved(node: Any) -> bool:
  names = ("broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type")
  return isinstance(node, Node) and (
    (node.recipe is None and node.part is not None and len(node.parents) == 1)
    or (node.recipe is not None and node.recipe.name in names)
  )


def _is(node: Any, name: str) -> bool:
  return isinstance(node, Node) and node.recipe is not None and node.recipe.name == name


def _candidates(factor: Node) -> list[Node]:
  """What may be normalized: the factor, or what a mean is subtracted from; also unmoved."""
  first = factor.recipe.operands[0] if factor.recipe and _is(factor, "sub") else factor
  found = [x for x in (first, factor) if isinstance(x, Node)]
  while found and _is_moved(found[-1]):
    found.append(found[-1].parents[0])
  if isinstance(first, Node) and _is_moved(first):
    found.append(first.parents[0])
  return found


def _match(factor: Node, root: Node, x: Node, name: str = "rsqrt") -> Normalization | None:
  """By what `x` is normalized in ``factor`` times or over the root."""
  top = statistic(factor, x)
  below = _statistic_under(root, x, name)
  if top is None or below is None or below.rows is None or below.has_entries:
    return None
  is_centered = top.polynomial == CENTERED
  found = is_variance(below.polynomial) if is_centered else is_mean_square(below.polynomial)
  if found is None or top.polynomial not in (X, CENTERED):
    return None
  entries = np.broadcast_to(top.places, factor.shape)
  if top.rows is not None and not np.array_equal(top.rows, below.rows):
    return None
  is_in_place = np.array_equal(entries.ravel(), np.arange(below.rows.size))
  places = np.broadcast_to(below.places, factor.shape)
  if not is_in_place or not np.array_equal(below.rows[places], below.rows[entries]):
    return None
  n = int(np.sum(below.rows == below.rows[0]))
  rows = np.argsort(below.rows, kind="stable").reshape((-1, n))
  return Normalization(rows, float(found[0]), float(found[1]), is_centered)


def _statistic_under(root: Node, x: Node, name: str):
  """The statistic that the root is taken of, where its copies lie."""
  moves, node = [], root
  while not _is(node, name):
    moves.append(node)
    node = node.parents[0]
  inner = statistic(node.recipe.operands[0] if node.recipe else None, x)
  if inner is None or not inner.places.ndim:
    return None
  with jax.ensure_compile_time_eval():
    places = jnp.asarray(np.broadcast_to(inner.places, node.shape))
    for move in reversed(moves):
      # Places are whole numbers, which a conversion would round.
      places = places if _is(move, "convert_element_type") else move.part.apply(places)
  return inner._replace(places=np.asarray(places))


def _node(what: Normalization, x: Node, aval: Any) -> Node:
  constant = _inverse(what, _least(what, x), compute_dtype(x.aval.dtype))
  recipe = Recipe("normalized", {"what": what, "shape": aval.shape}, (x,))
  linear, rest = _around_point(what, x, constant, aval.shape)
  return Node(aval, LipschitzPart((constant,), linear=linear, rest=rest), (x,), recipe=recipe)


def _around_point(
  what: Normalization, x: Node, constant: jax.Array, shape: tuple[int, ...]
) -> tuple[Any, Any]:
  r"""The Jacobian in the middle of the domain, and how much it differs elsewhere.

  The second derivative, :math:`-\frac{a}{ns^3}(c\,h^\top k + h\,c^\top k + k\,c^\top h) +
  \frac{3a^2}{n^2s^5}c\,(c^\top h)(c^\top k)`, is at most :math:`6\sqrt{a/n}/s^2`, as
  :math:`\|c\| \le s\sqrt{n/a}`.
  """
  if value_range(x, at_point=True) is None:
    return None, tuple
  n = what.rows.shape[1]
  lower, upper = full_range(x, at_point=True)
  middle, _ = _rows_of(what, lower, upper)
  square = what.scale * jnp.mean(jnp.square(middle), 1, keepdims=True) + what.epsilon
  inverse = jax.lax.rsqrt(square)
  inverse = jnp.where(jnp.isfinite(inverse), inverse, 0)
  unit = middle * inverse * math.sqrt(what.scale / n)
  back = np.argsort(what.rows, axis=None)

  def apply(h: jax.Array, sign: int = -1) -> jax.Array:
    h = h.ravel()[what.rows]
    h = h + sign * what.is_centered * jnp.mean(h, axis=1, keepdims=True)
    u = unit.astype(h.dtype) if sign < 0 else jnp.abs(unit).astype(h.dtype)
    h = inverse.astype(h.dtype) * (h + sign * u * jnp.sum(u * h, axis=1, keepdims=True))
    return h.ravel()[back].reshape(shape)

  def rest():
    off = norm_above(upper - lower)
    # Between any two inputs; what rounding makes of the middle is an input near by.
    rounding = 64 * (n + 16) * unit_roundoff(middle.dtype) * constant * (1 + math.sqrt(n))
    steep = times_above(6 * math.sqrt(what.scale / n), times_above(constant, constant))
    known = up(times_above(steep, movement(x) + off) + rounding)
    return (jnp.where(jnp.all(_is_accurate(square)), known, jnp.inf),)

  norm = up(jnp.max(inverse, initial=0), n + 16)
  linear = LinearPart(
    apply,
    (lambda: norm,),
    roundings=3 * n + 8,
    magnitude=functools.partial(apply, sign=1),
    is_exact=False,
  )
  return linear, functools.cache(rest)


def _inverse(what: Normalization, least: Any, dtype: Any) -> jax.Array:
  """At least 1/√(a·variance + ε)."""
  square = down(what.scale * jnp.asarray(least, dtype), 2) + down(jnp.asarray(what.epsilon, dtype))
  # One that is too large is as large as it can be.
  return up(1 / jnp.sqrt(jnp.minimum(square, jnp.finfo(dtype).max)))


def _is_accurate(square: jax.Array) -> jax.Array:
  """Whether squares that were too small, or too large, are no part of what is under a root."""
  low = tiny(square.dtype) / unit_roundoff(square.dtype) ** 2
  return (square > low) & (square < jnp.inf)


def _least(what: Normalization, x: Node) -> Any:
  """At most the variance, or mean square, of each row, for every input."""
  if value_range(x, at_point=True) is None:
    return 0.0
  n = what.rows.shape[1]
  middle, error = _rows_of(what, *full_range(x, at_point=True))
  away = up(norm_above(error, 1) + movement(x), 2)
  left = jnp.maximum(down(norm_below(middle, 1)) - away, 0)
  return jnp.min(down(jnp.square(left) / n), initial=jnp.inf)


def _rows_of(
  what: Normalization, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Rows in the middle of a range, less their mean if so, and how far x can be from them."""
  lower, upper = (end.ravel()[what.rows] for end in (lower, upper))
  lower, upper = (end.astype(compute_dtype(end.dtype)) for end in (lower, upper))
  middle = lower / 2 + upper / 2
  n = what.rows.shape[1]
  u = unit_roundoff(middle.dtype)
  rounding = (n + 8) * u * jnp.max(jnp.abs(middle), axis=1, keepdims=True)
  error = up(jnp.maximum(upper - middle, middle - lower)) + rounding
  return middle - jnp.mean(middle, axis=1, keepdims=True) * what.is_centered, error


@range_rule("normalized")
def _range(recipe: Recipe, x: Range) -> Range:
  """Around what the middle of the range gives; never beyond √(n/a)."""
  what: Normalization = recipe.params["what"]
  shape, n = recipe.params["shape"], what.rows.shape[1]
  middle, error = _rows_of(what, *x)
  away = norm_above(error, 1)[:, None]
  least = jnp.square(jnp.maximum(down(norm_below(middle, 1)[:, None]) - away, 0)) / n
  largest = up(jnp.asarray(math.sqrt(n / what.scale), middle.dtype))
  square = what.scale * jnp.mean(jnp.square(middle), axis=1, keepdims=True) + what.epsilon
  value = middle / jnp.sqrt(square)
  value = jnp.where(jnp.isfinite(value), value, 0)
  distance = times_above(_inverse(what, down(least), middle.dtype), away)
  distance = jnp.where(_is_accurate(square), distance, jnp.inf)
  distance = distance + 4 * (n + 16) * unit_roundoff(middle.dtype) * largest
  lower, upper = widened(value - distance, value + distance)
  back = np.argsort(what.rows, axis=None)
  fit = lambda end: jnp.clip(jnp.nan_to_num(end, nan=0.0), -largest, largest).ravel()[back]
  lower = jnp.where(jnp.isfinite(distance), lower, -largest)
  upper = jnp.where(jnp.isfinite(distance), upper, largest)
  return fit(lower).reshape(shape), fit(upper).reshape(shape)
