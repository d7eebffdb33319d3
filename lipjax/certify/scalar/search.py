r"""Certified slopes of scalar functions: the intervals that activations are bounded by."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from lipjax.certify.scalar import errors as slope_errors
from lipjax.certify.scalar.choices import agreements
from lipjax.certify.scalar.evaluation import evaluate, output
from lipjax.certify.scalar.exact import kinks
from lipjax.certify.scalar.graph import Graph
from lipjax.certify.scalar.rules import Boxes, Dual
from lipjax.certify.scalar.tail import Ray
from lipjax.certify.scalar.tracing import graph_of
from lipjax.rounding import interval as iv
from lipjax.rounding.interval import Interval

#: How far the result may be from the slopes that are attained, relative to the larger one.
TOLERANCE = 1e-5
#: Rounds of bisection, boxes in one round, and where the rays to infinity may start.
ROUNDS, MAX_BOXES, FIRST_START, LAST_START = 80, 1 << 13, 16.0, 1e7


class Slopes(NamedTuple):
  """The slopes of a scalar function lie between `lower` and `upper`."""

  lower: float
  upper: float


def slope_interval(
  g: Callable[[jax.Array], jax.Array],
  *,
  lo: float = -math.inf,
  hi: float = math.inf,
  dtype: DTypeLike = np.float32,
) -> Slopes:
  r"""Bounds of the slopes of a scalar function.

  .. math:: \alpha \le \frac{g(a) - g(b)}{a - b} \le \beta \quad\text{for all } a \ne b
     \text{ in } [lo, hi]

  The function is traced and written out down to primitives, the function itself and never a
  custom derivative. The domain is bisected: on each part interval arithmetic encloses all
  values and slopes, and the parts that hold the extremes are halved until these are known to
  1e-5. On the two rays to infinity it also follows how fast values
  grow and settle, which bounds ``x * exp(-x)`` and ``x / (1 + abs(x))`` there.

  **Guarantee.** The bounds hold for the real function that the primitives and the constants of
  the program, as rounded to its dtype, define: all rounding of the search is outward, and it
  may end early but not wrongly. They do not count the rounding of the program itself, nor of
  conversions between floats. A function that jumps, or is not proved to be continuous, raises;
  so does one that is undefined somewhere on the domain, unless it is multiplied by 0 there.

  Args:
    g: from an array to an array of the same shape, each entry to its own.
    lo: smallest input; -∞ when there is none.
    hi: largest input.
    dtype: the floats in which g computes, float32 by default.

  Returns:
    The smallest and the largest slope, as Python floats, mostly within 1e-5 of the larger one.
    They are looser where a sum or a product has two kinks in one place that is not a float, and
    for functions whose slope settles, far out, as a difference of larger terms.

  Raises:
    NotLipschitzError: no finite bound was found.
    UnknownPrimitiveError: g holds a primitive whose slopes are not known.
    CertifyError: g is not a function of single numbers, or closes over traced values.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> slope_interval(jax.nn.relu)
    Slopes(lower=0.0, upper=1.0)
    >>> lower, upper = slope_interval(jnp.square, lo=-1, hi=3)
    >>> round(lower, 3), round(upper, 3)
    (-2.0, 6.0)
  """
  return graph_slopes(graph_of(g, dtype), lo, hi)


@functools.lru_cache(maxsize=512)
def slopes_on_line(graph: Graph) -> Slopes:
  """Bounds of all slopes of a graph, which are looked for once."""
  return graph_slopes(graph)


def graph_slopes(graph: Graph, lo: float = -math.inf, hi: float = math.inf) -> Slopes:
  """Bounds of the slopes of a graph."""
  lo, hi = float(lo), float(hi)
  if not lo < hi:
    msg = f"Slopes are between two inputs, lo < hi, but lo is {lo} and hi is {hi}."
    raise ValueError(msg)
  # Intervals are infinite, and infinity minus itself is dealt with.
  with np.errstate(all="ignore"):
    try:
      return _Search(graph, lo, hi).run()
    except slope_errors.NotLipschitzError as error:
      if any(node.parameter == (-math.inf, math.inf) for node in graph.nodes):
        raise slope_errors.traced() from error
      raise


class _Search:
  """Bisection of the domain of one graph."""

  def __init__(self, graph: Graph, lo: float, hi: float):
    self.graph = graph
    self.agreed = agreements(graph)
    start = max([FIRST_START, *(2 * abs(end) for end in (lo, hi) if math.isfinite(end))])
    self.sides = [side for side, end in ((-1, lo), (1, hi)) if math.isinf(end)]
    # Where each ray starts, by its side.
    self.starts = dict.fromkeys(self.sides, start)
    lo, hi = -start if math.isinf(lo) else lo, start if math.isinf(hi) else hi
    # Cut at kinks, no box has one inside, where it would have the slopes of both sides at once.
    ends = np.array([lo, *sorted(kinks(graph, lo, hi)), hi])
    self.boxes = iv.interval(ends[:-1], ends[1:])

  def run(self) -> Slopes:
    """Halve the boxes that may hold an extreme slope until there are none, or too many."""
    boxes, settled = self.boxes, Slopes(math.inf, -math.inf)
    slopes = self._slopes(boxes)
    rays = {side: self._ray_slopes(side) for side in self.sides}
    # The largest slope that is surely attained, and the smallest: of single points, and of
    # boxes, of which every slope is one.
    least, most = math.inf, -math.inf
    for _ in range(ROUNDS):
      middles = _middles(boxes)
      at = self._slopes(Interval(middles, middles))
      most = max(most, at.lo.max(initial=-np.inf), slopes.lo.max(initial=-np.inf))
      least = min(least, at.hi.min(initial=np.inf), slopes.hi.min(initial=np.inf))
      margin = _margin(least, most)
      is_open = (slopes.hi > most + margin) | (slopes.lo < least - margin)
      is_open &= (boxes.lo < middles) & (middles < boxes.hi)
      open_sides = [
        side
        for side, ray in rays.items()
        if (ray.hi > most + margin or ray.lo < least - margin) and not self._ended(side)
      ]
      is_hopeless = any(not iv.is_bounded(ray) for side, ray in rays.items() if self._ended(side))
      if not (is_open.any() or open_sides) or is_open.sum() > MAX_BOXES or is_hopeless:
        break
      settled = _around(settled, _pick(slopes, ~is_open))
      halves, middles, whole = _pick(boxes, is_open), middles[is_open], _pick(slopes, is_open)
      added = [self._extend(side) for side in open_sides]
      boxes = Interval(
        np.concatenate([halves.lo, middles, [box[0] for box in added]]),
        np.concatenate([middles, halves.hi, [box[1] for box in added]]),
      )
      # A part has no other slopes than the whole.
      wholes = [whole, whole, *(Interval(*map(np.atleast_1d, rays[side])) for side in open_sides)]
      rays.update({side: self._ray_slopes(side) for side in open_sides})
      slopes = iv.meet(
        self._slopes(boxes), Interval(*map(np.concatenate, zip(*wholes, strict=True)))
      )
    result = _around(settled, slopes)
    for ray in rays.values():
      result = _around(result, Interval(ray.lo[None], ray.hi[None]))
    if not (math.isfinite(result.lower) and math.isfinite(result.upper)):
      self._explain(boxes, slopes, rays)
    return result

  def _evaluate(self, ar: Any, x: Any) -> list[Any]:
    return evaluate(self.graph, ar, x, self.agreed)

  def _slopes(self, boxes: Interval) -> Interval:
    return output(self._evaluate(Boxes(boxes), boxes)).slope

  def _ray_slopes(self, side: int) -> Interval:
    ray = Ray(self.starts[side], side)
    return output(self._evaluate(ray, ray.input())).slope.bounds

  def _ended(self, side: int) -> bool:
    return self.starts[side] >= LAST_START

  def _extend(self, side: int) -> tuple[float, float]:
    """Start a ray four times further out, and return the box in between."""
    near, far = self.starts[side], 4 * self.starts[side]
    self.starts[side] = far
    return (near, far) if side > 0 else (-far, -near)

  def _explain(self, boxes: Interval, slopes: Interval, rays: dict[int, Interval]):
    """Raise the error of the first node on which a slope that was bounded is no more."""
    for side, slope in rays.items():
      if not iv.is_bounded(slope):
        ray = Ray(self.starts[side], side)
        duals = self._evaluate(ray, ray.input())
        self._raise(duals, ray, ray.input().bounds)
    worst = int(np.argmin(iv.is_bounded(slopes)))
    box = Interval(boxes.lo[[worst]], boxes.hi[[worst]])
    self._raise(self._evaluate(Boxes(box), box), Boxes(box), box)

  def _raise(self, duals: list[Any], ar: Any, box: Interval):
    domain = _written(box)
    for node, dual in zip(self.graph.nodes, duals, strict=True):
      if not isinstance(dual, Dual) or iv.is_bounded(ar.bounds(dual.slope)).all():
        continue
      operands = [duals[i] for i in node.inputs]
      operands = [operand for operand in operands if isinstance(operand, Dual)]
      if all(iv.is_bounded(ar.bounds(operand.slope)).all() for operand in operands):
        place = node.line
        if node.name == "select_n":
          raise slope_errors.jump(place, domain)
        inputs = " and ".join(_written(ar.bounds(operand.value)) for operand in operands)
        raise slope_errors.unbounded(_title(node), place, inputs, domain)
    name = "The function"
    raise slope_errors.unbounded(name, "", domain, domain)


def _title(node: Any) -> str:
  return f"integer_pow[y={node.parameter}]" if node.name == "integer_pow" else node.name


def _written(x: Interval) -> str:
  lo, hi = float(x.lo.flat[0]), float(x.hi.flat[0])
  return f"{lo:.6g}" if lo == hi else f"[{lo:.6g}, {hi:.6g}]"


def _margin(least: float, most: float) -> float:
  """How much a slope may exceed those that are attained."""
  scale = max(abs(least), abs(most))
  return TOLERANCE * scale if math.isfinite(scale) else 0.0


def _middles(boxes: Interval) -> np.ndarray:
  """Where boxes are cut: in the middle near 0, and by ratio far out."""
  lo, hi = np.arcsinh(boxes.lo), np.arcsinh(boxes.hi)
  return np.clip(np.sinh((lo + hi) / 2), boxes.lo, boxes.hi)


def _pick(x: Interval, which: np.ndarray) -> Interval:
  return Interval(x.lo[which], x.hi[which])


def _around(slopes: Slopes, x: Interval) -> Slopes:
  """The smallest interval around slopes and more of them."""
  lower = min(slopes.lower, float(x.lo.min(initial=np.inf)))
  return Slopes(lower, max(slopes.upper, float(x.hi.max(initial=-np.inf))))
