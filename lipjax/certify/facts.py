r"""What is known of a node: how it depends on earlier ones, between which numbers it lies.

A node is a linear function of its parents, or a Lipschitz one, or a scalar function of one
parent's every entry. A shift changes no slope: constants do not appear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.certify.graph import Node


class Range(NamedTuple):
  """Between which numbers the entries of an array lie: ends that broadcast to its shape."""

  lower: Any
  upper: Any

  @classmethod
  def of(cls, value: Any) -> Range:
    """Of numbers that are known."""
    return cls(value, value)

  @property
  def is_known(self) -> bool:
    """Whether both ends are one array, so that nothing needs to be computed twice."""
    return self.lower is self.upper

  def full(self, shape: tuple[int, ...]) -> Range:
    """With an end for each entry."""
    if self.is_known:
      return Range.of(jnp.broadcast_to(self.lower, shape))
    return Range(jnp.broadcast_to(self.lower, shape), jnp.broadcast_to(self.upper, shape))

  def size(self) -> jax.Array:
    """At least the magnitude of each entry."""
    return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))


class Middle(NamedTuple):
  """What an array is for the input in the middle of the domain, as computed.

  Attributes:
    value: the array.
    error: at least how far, in l2, the exact one is from it.
    lost: how far, at least, each entry is off beyond what the errors of its parents explain; None
      if it is not.
    errors: at least how far each entry is off, where that is known apart.
  """

  value: Any
  error: Any
  lost: Any = None
  errors: Any = None


class Pointwise(NamedTuple):
  """A sum of arrays of one shape times numbers, or times arrays that broadcast."""

  factors: tuple[Any, ...]


class Shifts(NamedTuple):
  """A convolution.

  Attributes:
    kernel: of `jax.lax.conv_general_dilated`.
    params: of it.
    n_folded: how often its entries were multiplied by constants, with a rounding each.
    lost: at least the norm of what products have lost that are too small.
  """

  kernel: Any
  params: dict[str, Any]
  n_folded: int
  lost: Any


class Windows(NamedTuple):
  """For each window of an image what is made of it, in each channel by itself.

  Attributes:
    sizes: of a window, along each axis of the array.
    strides: likewise.
    padding: likewise, before and after.
    dilation: of the window.
  """

  sizes: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]


class Channels(NamedTuple):
  """Channels that are left out, or put side by side.

  Attributes:
    axis: where channels are.
    places: of each array, which channel of the result each of its channels is; -1 for none.
  """

  axis: int
  places: tuple[Any, ...]


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
    lost: at least the norm of what coefficients lost by being too small, beyond the relative
      error of `roundings`; None if they are exact or were too small before.
    on_images: what it does to images, if that is known: it commutes with shifts.
  """

  apply: Callable[..., jax.Array]
  norms: tuple[Callable[[], Any], ...]
  is_disjoint: bool = False
  roundings: int = 0
  magnitude: Callable[..., jax.Array] | None = None
  weight: Any = None
  is_selection: bool = False
  lost: Any = None
  on_images: Pointwise | Shifts | Windows | Channels | None = None


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
    on_images: of an image, if it is that of each channel's windows: the constant is each channel's.
  """

  constants: tuple[Any, ...]
  adds: bool = False
  linear: LinearPart | None = None
  rest: Callable[[], tuple[Any, ...]] = tuple
  on_images: Windows | None = None


@dataclasses.dataclass(frozen=True)
class ScalarPart:
  """A scalar function of every entry of the one parent, between two slopes.

  Attributes:
    lower: the smallest slope, for all entries or for each.
    upper: the largest slope.
    on_images: if it is no function of single entries: only each channel of an image as a whole
      moves as if it were.
  """

  lower: Any
  upper: Any
  on_images: Windows | None = None


Part = LinearPart | LipschitzPart | ScalarPart


class Depends(NamedTuple):
  """How a node depends on earlier ones; on no one in particular if it is an input.

  Attributes:
    part: the function that it is of its parents.
    parents: their places.
    multiple: the place of a node that it is a multiple of, a constant apart, and the factor.
    seen: the same in a way that says more of directions, for ellipsoids, and less by norms.
    gain: where parents lie before the operands, how far it moves at most when one of these does.
  """

  part: Part | None = None
  parents: tuple[int, ...] = ()
  multiple: tuple[int, float] | None = None
  seen: Depends | None = None
  gain: Any = None


class Facts(NamedTuple):
  """What is known of a node.

  Attributes:
    value: of a constant.
    depends: of what moves, how.
    range: between which numbers it lies for all inputs, if that is known; that in the middle
      as computed is one of them.
    middle: what it is for the input in the middle of the domain.
    bound: on a domain, how far it moves at most for each unit that the input moves.
    entries: on a domain, how far each entry moves at most, where that is known.
  """

  value: Any = None
  depends: Depends = Depends()
  range: Range | None = None
  middle: Middle | None = None
  bound: Any = None
  entries: Any = None


class Operand(NamedTuple):
  """A node that another one reads, and what is known of it.

  Attributes:
    place: in the graph.
    node: itself.
    facts: about it.
    radius: of the domain; None if inputs may lie anywhere.
    sharper: what more is known of it, at some cost, on a domain.
  """

  place: int
  node: Node
  facts: Facts
  radius: Any = None
  sharper: Callable[[], Facts] | None = None

  def sharp(self) -> Facts:
    """All that can be found out about it."""
    return self.facts if self.sharper is None else self.sharper()

  @property
  def moves(self) -> bool:
    """Whether it depends on the input."""
    return self.node.moves

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array."""
    return self.node.shape

  @property
  def aval(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype, for rules of users."""
    return jax.ShapeDtypeStruct(self.node.shape, self.node.dtype)

  @property
  def value(self) -> Any:
    """Of a constant."""
    return self.facts.value

  @property
  def multiple(self) -> tuple[int, float]:
    """The node that it is a multiple of, a constant apart; itself if there is no other."""
    return self.facts.depends.multiple or (self.place, 1.0)

  @property
  def range(self) -> Range | None:
    """For all inputs, an end for each entry."""
    found = self.sharp().range
    return None if found is None else found.full(self.shape)

  @property
  def middle(self) -> Middle | None:
    """For the input in the middle of the domain."""
    return self.facts.middle
