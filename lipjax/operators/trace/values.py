"""What a value of the program is: data, or made of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lipjax.jaxprs.source import source_line
from lipjax.operators.trace.leaves import Leaf, Shape, expand, joined, move, unstack


class Array(NamedTuple):
  """A value that is no leaf's: data, or known.

  Attributes:
    is_data: whether it depends on the arguments.
    constant: axes along which it is known to be constant.
    mixed: leaves that are joined to data entry by entry in it, perhaps a weight made noisy.
  """

  is_data: bool
  constant: frozenset[int] = frozenset()
  mixed: Weight | None = None

  def unstacked(self) -> Array:
    """A turn's part of what a scan runs over."""
    return Array(self.is_data, frozenset(k - 1 for k in self.constant if k))

  def forgotten(self) -> Array:
    """The same, with nothing known of its entries."""
    return Array(self.is_data)


class Weight(NamedTuple):
  """A value made of leaves only.

  Attributes:
    leaves: whose entries it has, multiplied together or side by side.
    others: leaves that it depends on in another way.
    factor: what multiplied them entry by entry, as text; a Diagonal is the same without it.
    change: what else was done to them.
    outer: where they were multiplied by data that is constant along an axis of theirs.
  """

  leaves: tuple[Leaf, ...] = ()
  others: frozenset[str] = frozenset()
  factor: str = ""
  change: str = ""
  outer: str = ""

  @property
  def paths(self) -> frozenset[str]:
    """Of all leaves in it."""
    return self.others | {leaf.path for leaf in self.leaves}

  def expanded(self, shape: Shape) -> Weight:
    """Its copies in an array of this shape."""
    return self._replace(leaves=tuple(expand(leaf, shape) for leaf in self.leaves))

  def fills(self, shape: Shape) -> bool:
    """Whether a leaf has an entry of its own for every entry of a matrix or larger array."""
    long = [k for k, n in enumerate(shape) if n > 1]
    return len(long) > 1 and any(all(map(leaf.varies, long)) for leaf in self.leaves)

  def unstacked(self) -> Weight:
    """A turn's part of what a scan runs over."""
    return self._replace(leaves=tuple(unstack(leaf) for leaf in self.leaves))

  def forgotten(self) -> Weight:
    """The same, with no leaf to be seen in it."""
    return opaque([self])


Value = Array | Weight


def opaque(weights: Sequence[Weight]) -> Weight:
  """Something computed from leaves, in which none of them is to be seen."""
  outer = next((w.outer for w in weights if w.outer), "")
  return Weight(others=frozenset().union(*(w.paths for w in weights)), outer=outer)


def join(a: Value, b: Value) -> Value:
  """What a value is that is `a` or `b`."""
  if a == b:
    return a
  if any(isinstance(x, Array) and x.is_data for x in (a, b)):
    return Array(True)
  weights = [x for x in (a, b) if isinstance(x, Weight)]
  return opaque(weights) if weights else Array(False)


def moved(weight: Weight, name: str, eqn: Any) -> list[Value]:
  """A weight after an equation that moves entries."""
  if not weight.leaves:
    return [weight] * len(eqn.outputs)
  columns = zip(*(move(leaf, name, eqn) for leaf in weight.leaves), strict=True)
  return [
    opaque([weight]) if None in leaves else weight._replace(leaves=leaves) for leaves in columns
  ]


def multiplied(a: Weight, b: Weight, eqn: Any, *, is_division: bool) -> Weight:
  """The product or quotient of leaves, entry by entry."""
  shape = eqn.outputs[0].aval.shape
  divisor = opaque([b]) if is_division else b.expanded(shape)
  if (a.paths & b.paths and not a.leaves) or {x.path for x in a.leaves} & {
    x.path for x in divisor.leaves
  }:
    return opaque([a, b])
  a = a.expanded(shape)
  return Weight(
    a.leaves + divisor.leaves,
    a.others | divisor.others,
    f"multiplied by other leaves{source_line(eqn)}",
    a.change or b.change,
    a.outer or b.outer,
  )


def combined(weights: Sequence[Weight], name: str, eqn: Any, xs: Sequence[Value]) -> Weight:
  """What else is computed from leaves: side by side, a sum, or nothing to be seen."""
  shape = eqn.outputs[0].aval.shape
  each = [leaf.path for w in weights for leaf in w.leaves]
  others = frozenset().union(*(w.others for w in weights))
  factor = next((w.factor for w in weights if w.factor), "")
  change = next((w.change for w in weights if w.change), "")
  if name in ("concatenate", "stack"):
    axis = eqn.params["dimension" if name == "concatenate" else "axis"]
    every = [leaf for w in weights for leaf in w.leaves]
    if name == "stack":
      every = [x._replace(axes=(*x.axes[:axis], (), *x.axes[axis:])) for x in every]
    found = [joined(leaf, axis, shape[axis]) for leaf in every]
    if None not in found:
      leaves = tuple(leaf for leaf in found if leaf is not None)
      return Weight(tuple(dict.fromkeys(leaves)), others, factor, change)
  if name in ("add", "sub", "add_any") and len(set(each)) == len(each):
    leaves = tuple(leaf for w in weights for leaf in w.expanded(shape).leaves)
    return Weight(leaves, others, factor, f"added to something else{source_line(eqn)}")
  return opaque(weights)


def spread(x: Array, shape: Shape, to: Shape) -> frozenset[int]:
  """Axes of the shape `to` along which an operand of an elementwise function is constant."""
  if not shape:
    return frozenset(range(len(to)))
  return x.constant | {k for k, n in enumerate(shape) if n == 1}


def constant_axes(name: str, eqn: Any, xs: Sequence[Value]) -> frozenset[int]:
  """Axes along which the result is known to be constant."""
  shape = eqn.outputs[0].aval.shape
  shapes = [v.aval.shape for v in eqn.inputs]
  if name in POINTWISE and all(len(s) in (0, len(shape)) for s in shapes):
    whole = frozenset(range(len(shape)))
    each = (
      spread(x, s, shape)
      if isinstance(x, Array)
      else frozenset(k for k in whole if x.leaves and not any(leaf.varies(k) for leaf in x.leaves))
      for x, s in zip(xs, shapes, strict=True)
    )
    return frozenset.intersection(whole, *each)
  if not xs or not isinstance(xs[0], Array):
    return frozenset()
  kept = xs[0].constant | {k for k, n in enumerate(shapes[0]) if n == 1}
  if name == "broadcast_in_dim":
    places = eqn.params["broadcast_dimensions"]
    return frozenset(range(len(shape))) - {to for k, to in enumerate(places) if k not in kept}
  if name == "transpose":
    return frozenset(i for i, k in enumerate(eqn.params["permutation"]) if k in kept)
  if name in ("reshape", "squeeze"):
    long = [[k for k, n in enumerate(s) if n > 1] for s in (shapes[0], shape)]
    if [shapes[0][k] for k in long[0]] == [shape[k] for k in long[1]]:
      return frozenset(to for k, to in zip(*long, strict=True) if k in kept)
  return frozenset()


#: Functions of single entries, as far as they occur around normalizations.
POINTWISE = {"add", "sub", "mul", "div", "max", "min", "neg", "exp", "log", "log1p", "expm1"}
POINTWISE |= {"tanh", "logistic", "sqrt", "rsqrt", "square", "integer_pow", "pow", "abs", "sign"}
POINTWISE |= {"convert_element_type", "copy", "erf", "sin", "cos", "select_n", "clamp"}
POINTWISE |= {"stop_gradient", "gt", "ge", "lt", "le", "eq", "ne", "reduce_precision", "erfc"}

#: What puts leaves beside data and multiplies nothing.
BESIDE = {"add", "sub", "add_any", "max", "min", "select_n", "clamp", "concatenate", "pad"}
BESIDE |= {"stack"}
BESIDE |= {"gt", "ge", "lt", "le", "eq", "ne", "dynamic_update_slice", "scatter", "scatter-add"}
