r"""A traced function as a graph: what depends on its input, and by which maps.

A `Node` is one array that depends on the input. It is a linear function of its parents, or
a Lipschitz one, or a scalar function of one parent's every entry. Constants do not appear:
a shift changes no slope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lipjax.certify.errors import CertifyError


@dataclasses.dataclass(frozen=True)
class LinearPart:
  r"""A linear function of one parent or several.

  Attributes:
    apply: one array for each parent to the result, linear.
    norms: for each parent a thunk of an upper bound of the norm.
    is_disjoint: whether each entry of the result has one parent, so that norms add like
      the legs of a right triangle.
    roundings: most terms that are summed for an entry, also by the transpose; 0 if nothing
      is computed.
    magnitude: as `apply`, with absolute values of all coefficients; None if not known.
    weight: what a later scaling of the result can be folded into.
    is_selection: whether each entry of the result is one entry of a parent, or 0.
    is_exact: whether the coefficients are the function's own and no products of them.
    lost: at least the norm of what coefficients lost by being too small, beyond the relative
      error of `roundings`; None if they are exact or were too small before.
  """

  apply: Callable[..., jax.Array]
  norms: tuple[Callable[[], Any], ...]
  is_disjoint: bool = False
  roundings: int = 0
  magnitude: Callable[..., jax.Array] | None = None
  weight: Any = None
  is_selection: bool = False
  is_exact: bool = True
  lost: Any = None


@dataclasses.dataclass(frozen=True)
class LipschitzPart:
  """A function with ``|f(x) - f(y)|² ≤ Σ constants² |xᵢ - yᵢ|²`` over its parents.

  If `adds` only ``|f(x) - f(y)| ≤ Σ constants |xᵢ - yᵢ|``. On a domain a function with a
  derivative is also a linear function, that of its middle, and a rest with smaller constants.

  Attributes:
    constants: one for each parent.
    adds: whether slopes add.
    linear: the linear function of the parents; None if there is none.
    rest: thunk of the constants, likewise, of f less `linear`.
  """

  constants: tuple[Any, ...]
  adds: bool = False
  linear: LinearPart | None = None
  rest: Callable[[], tuple[Any, ...]] = tuple


@dataclasses.dataclass(frozen=True)
class ScalarPart:
  """A scalar function of every entry of the one parent.

  Attributes:
    slopes: the smallest and the largest slope, for all entries or for each.
    cells: its slopes and values on intervals.
  """

  slopes: Callable[[], tuple[Any, Any]]
  cells: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Failure:
  """No bound is known; raised only if the result depends on it."""

  error: CertifyError


Part = LinearPart | LipschitzPart | ScalarPart | Failure


class Recipe(NamedTuple):
  """How an array was computed, for patterns and for ranges of values.

  Attributes:
    name: JAX's primitive's, or a pattern's; empty for other primitives.
    params: its parameters.
    operands: nodes and constants.
    bind: from values of the operands to the array; None for patterns.
  """

  name: str
  params: dict[str, Any]
  operands: tuple[Any, ...]
  bind: Callable[..., jax.Array] | None = None


# Without a repr: one that shows its parents grows exponentially.
@dataclasses.dataclass(eq=False, repr=False)
class Node:
  """One array of the traced function.

  Attributes:
    aval: its shape and dtype.
    part: how it depends on the parents; None for the function's input.
    parents: earlier nodes.
    link: the earlier node and the function of its every entry that this one is, if so.
    recipe: how it is computed; None if the part says it all.
    domain: of an input, where it may lie; None for everywhere.
    cache: of `lipjax.certify.ranges`.
  """

  aval: jax.ShapeDtypeStruct
  part: Part | None = None
  parents: tuple[Node, ...] = ()
  link: tuple[Node, Callable[[jax.Array], jax.Array]] | None = None
  recipe: Recipe | None = None
  domain: Any = None
  cache: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array."""
    return self.aval.shape

  def ancestry(self) -> Iterator[tuple[Node, Callable[[jax.Array], jax.Array]]]:
    """This node and those it is a scalar function of, entry by entry, latest first."""
    node, fn = self, lambda x: x
    yield node, fn
    while node.link is not None:
      earlier, step = node.link
      node, fn = earlier, _composed(fn, step)
      yield node, fn


def _composed(outer, inner):
  return lambda x: outer(inner(x))


def in_order(outputs: list[Node]) -> list[Node]:
  """The nodes that the outputs depend on, parents first; raises what a failed one holds."""
  order: dict[int, Node] = {}
  stack: list[tuple[Node, bool]] = [(node, False) for node in outputs]
  while stack:
    node, are_parents_done = stack.pop()
    if id(node) in order:
      continue
    if are_parents_done:
      order[id(node)] = node
      continue
    if isinstance(node.part, Failure):
      raise node.part.error
    stack.append((node, True))
    stack.extend((parent, False) for parent in node.parents)
  return list(order.values())
