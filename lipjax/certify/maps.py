r"""Linear maps between nodes: how far one moves when those that it depends on do.

Every scalar function of slopes in [α, β] is :math:`mu + r(u)`, :math:`m = (\alpha+\beta)/2`, with
r of slope :math:`h = (\beta-\alpha)/2`. Sources of a node are inputs, and the r of all functions
before it; `lipjax.certify.sources` adds up how far they move it, each by one linear map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.facts import Facts, LinearPart, LipschitzPart, Part, ScalarPart
from lipjax.certify.graph import Node
from lipjax.certify.matrix import Rows, identity_rows
from lipjax.certify.stacks import is_small, norm_of
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import max_magnitude, norm_above, times_above, tiny

#: Matrices of compositions are looked at if they have at most so many rows …
ROWS_UP_TO = 1024
#: … and entries.
ENTRIES_UP_TO = 2**22
#: A linear map to a target: its matrix, or at least its norm where that is too large.
Way = Rows | jax.Array
#: How far a node moves, from how far others do.
Moves = Callable[[Mapping[int, Any]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """Nodes, parents first, and what is known of each."""

  nodes: Sequence[Node]
  facts: Sequence[Facts]
  _memo: dict[Any, Any] = dataclasses.field(default_factory=dict)

  def once(self, fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(*args)``, and the same object again: engines go the same ways from a target."""
    if (fn, args) not in self._memo:
      self._memo[fn, args] = fn(*args)
    return self._memo[fn, args]

  def part(self, i: int) -> Part | None:
    """How a node depends on its parents."""
    return self.facts[i].depends.part

  def seen(self) -> Known:
    """With what says more of directions, where there is something."""
    if all(facts.depends.seen is None for facts in self.facts):
      return self
    facts = [x._replace(depends=x.depends.seen or x.depends) for x in self.facts]
    return Known(self.nodes, facts)

  def is_small(self, i: int) -> bool:
    """Whether maps to a node are followed as matrices, not by norms alone."""
    return 0 < self.nodes[i].size <= ROWS_UP_TO

  def parents(self, i: int) -> tuple[int, ...]:
    """The nodes that it depends on."""
    return self.facts[i].depends.parents


def live(known: Known, outputs: Sequence[int]) -> list[int]:
  """The nodes that the outputs depend on, parents first."""
  needed = set(outputs)
  for i in range(max(outputs, default=-1), -1, -1):
    if i in needed:
      needed.update(known.parents(i))
  return sorted(needed)


def norms_of(known: Known, order: Sequence[int]) -> list[Any]:
  """The thunks of the norms of all linear parts."""
  parts = (known.part(i) for i in order)
  return [norm for part in parts if isinstance(part, LinearPart) for norm in part.norms]


def bound_from_parents(known: Known, i: int, bounds: Mapping[int, Any]) -> jax.Array:
  """How far a node moves at most when its parents move as far as given."""
  if known.part(i) is None:
    return jnp.ones((), known.nodes[i].wide)
  return joint(known, i, gains(known.part(i)), bounds)


def joint(known: Known, i: int, factors: Sequence[Any], bounds: Mapping[int, Any]) -> jax.Array:
  """The same where each parent's movement counts by a factor."""
  pairs = zip(factors, known.parents(i), strict=True)
  terms, part = [times_above(g, bounds[p]) for g, p in pairs], known.part(i)
  if len(terms) == 1:
    return terms[0]
  is_linear = isinstance(part, LinearPart) and not part.is_disjoint
  if is_linear or (isinstance(part, LipschitzPart) and part.adds):
    return up(functools.reduce(jnp.add, terms), len(terms))
  return hypotenuse(terms)


def hypotenuse(terms: list[jax.Array]) -> jax.Array:
  """√(sum of squares), rounded up."""
  return terms[0] if len(terms) == 1 else norm_above(jnp.stack(terms))


def gains(part: Part | None) -> list[Any]:
  """For each parent how far a node moves at most when it moves."""
  match part:
    case LinearPart(norms=norms):
      return [norm() for norm in norms]
    case LipschitzPart(constants=constants):
      return list(constants)
    case ScalarPart(lower=low, upper=high):
      return [jnp.max(jnp.maximum(jnp.abs(low), jnp.abs(high)), initial=0)]
  return []


def is_nonlinear(part: Part | None) -> bool:
  """Whether a node with it is a source of its own."""
  return isinstance(part, ScalarPart | LipschitzPart)


def has_linear(part: Part | None) -> bool:
  """Whether it is linear, or has a part that is."""
  is_split = isinstance(part, LipschitzPart) and part.linear is not None
  return isinstance(part, LinearPart) or is_split


def of_source(known: Known, source: int, way: Way) -> tuple[Way, Moves]:
  """The map and how far its source moves; of a scalar function, how far it is off its middle."""
  part = known.part(source)
  if not isinstance(part, ScalarPart):
    return way, lambda bounds: bounds[source]
  half, (parent,) = half_slope(part), known.parents(source)
  if half.ndim and isinstance(way, Rows):
    return way.scaled(half), lambda bounds: bounds[parent]
  largest = jnp.max(half, initial=0)
  return way, lambda bounds: times_above(bounds[parent], largest)


def is_source(part: Part | None) -> bool:
  """Whether it is an input's, or a function's."""
  return part is None or is_nonlinear(part)


def backward(
  known: Known, target: int, order: Sequence[int], *, splits: bool = True
) -> Iterator[tuple[int, Way]]:
  """The linear maps to a target from its sources, and from all nodes between them."""
  one = lambda: jnp.ones((), known.nodes[target].wide)
  ways: dict[int, Way] = {target: rows_at(known, target) if known.is_small(target) else one()}
  for i in reversed([i for i in order if i <= target]):
    if i not in ways:
      continue
    way, part = ways.pop(i), known.part(i)
    yield i, way
    if part is None or (isinstance(part, LipschitzPart) and not (splits and part.linear)):
      continue
    for k, parent in enumerate(known.parents(i)):
      earlier = _step_back(known, i, k, way)
      ways[parent] = _joined(known, ways[parent], earlier) if parent in ways else earlier


def rows_at(known: Known, target: int) -> Rows:
  """The matrix from a target to itself."""
  return known.once(_identity, known, target)


def rows_back(known: Known, i: int, k: int, matrix: Rows) -> Rows | None:
  """The matrix from the k-th parent of a node on; None if it is too large."""
  args = known, i, k, matrix
  return known.once(_rows_back, *args) if is_small(matrix) else _rows_back(*args)


def rows_joined(known: Known, one: Rows, other: Rows) -> Rows:
  """Of two ways to the target."""
  return known.once(Rows.plus, one, other) if is_small(one) else one.plus(other)


def _identity(known: Known, target: int) -> Rows:
  return identity_rows(known.nodes[target])


def _rows_back(known: Known, i: int, k: int, matrix: Rows) -> Rows | None:
  part = known.part(i)
  if isinstance(part, ScalarPart):
    return matrix.scaled(middle_slope(part))
  parents = [known.nodes[p] for p in known.parents(i)]
  if matrix.n_rows * parents[k].size > ENTRIES_UP_TO:
    return None
  linear = _linear(part)
  return matrix.through(known.nodes[i], linear, parents, k, linear.norms[k]())


def _step_back(known: Known, i: int, k: int, way: Way) -> Way:
  """From the k-th parent of a node on; a norm where the matrix is too large."""
  earlier = rows_back(known, i, k, way) if isinstance(way, Rows) else None
  if earlier is not None:
    return earlier
  part = known.part(i)
  if isinstance(part, ScalarPart):
    gain = max_magnitude(middle_slope(part))
  else:
    gain = _linear(part).norms[k]()
  return times_above(_norm(way), gain)


def half_slope(part: ScalarPart) -> jax.Array:
  """How far slopes are from the middle one."""
  middle = middle_slope(part)
  half = up(jnp.maximum(part.upper - middle, middle - part.lower), 2)
  # A difference can be too small to be normal.
  return jnp.where(part.lower < part.upper, jnp.maximum(half, tiny(half.dtype)), half)


def _joined(known: Known, one: Way, other: Way) -> Way:
  if isinstance(one, Rows) and isinstance(other, Rows):
    return rows_joined(known, one, other)
  return up(_norm(one) + _norm(other), 2)


def _norm(way: Way) -> jax.Array:
  return norm_of(way) if isinstance(way, Rows) else way


def middle_slope(part: ScalarPart) -> Any:
  """Between the smallest and the largest."""
  return (part.lower + part.upper) / 2


def _linear(part: Part | None) -> LinearPart:
  linear = part.linear if isinstance(part, LipschitzPart) else part
  if not isinstance(linear, LinearPart):
    msg = "Only linear parts and scalar functions have a matrix."
    raise TypeError(msg)
  return linear
