"""Where every axis of a leaf has gone: moves of entries, and the operator that a product says."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from lipjax.operators.base import LinearOperator
from lipjax.operators.convolution import Convolution
from lipjax.operators.dense import Dense
from lipjax.operators.diagonal import Diagonal

Shape = tuple[int, ...]


class Unreadable(ValueError):
  """A use of a leaf that is no operator of its own axes; the text says why."""


class Atom(NamedTuple):
  """An axis of a leaf, or a factor of one, somewhere in an axis of a value.

  Attributes:
    axis: of the leaf; None for copies, and for the axis along which leaves are stacked.
    size: its length.
    is_whole: False where only a slice of it is there.
    is_flipped: whether it runs backwards.
    is_joined: whether something else is concatenated to it.
  """

  axis: int | None
  size: int
  is_whole: bool = True
  is_flipped: bool = False
  is_joined: bool = False

  @property
  def is_picked(self) -> bool:
    """Whether it is one entry of an axis."""
    return self.size == 1 and not self.is_whole


class Leaf(NamedTuple):
  """A leaf whose entries were only moved: its atoms by axis of the value, major first."""

  path: str
  shape: Shape
  axes: tuple[tuple[Atom, ...], ...]
  stacked: tuple[int, ...] = ()

  @classmethod
  def of(cls, path: str, shape: Shape) -> Leaf:
    """A leaf as it is."""
    return cls(path, shape, tuple((Atom(axis, n),) for axis, n in enumerate(shape)))

  def varies(self, axis: int) -> bool:
    """Whether the entries of the value differ along an axis of it."""
    return any(a.size > 1 and (a.axis is not None or a.is_joined) for a in self.axes[axis])


# ---- moves ----


def move(leaf: Leaf, name: str, eqn: Any) -> list[Leaf | None]:
  """A leaf after an equation that moves entries, for each result; None where it is lost."""
  p, shapes = eqn.params, [v.aval.shape for v in eqn.outputs]
  match name:
    case "reshape" if p["dimensions"] is not None:
      return [None]
    case "reshape" | "squeeze":
      return [reshape(leaf, shapes[0])]
    case "broadcast_in_dim":
      axes: list[tuple[Atom, ...]] = [() for _ in shapes[0]]
      for atoms, to in zip(leaf.axes, p["broadcast_dimensions"], strict=True):
        axes[to] = atoms
      return [expand(leaf._replace(axes=tuple(axes)), shapes[0])]
    case "transpose":
      return [leaf._replace(axes=tuple(leaf.axes[axis] for axis in p["permutation"]))]
    case "rev":
      # Reversing merged axes reverses each of them.
      flip = lambda atoms: tuple(a._replace(is_flipped=not a.is_flipped) for a in atoms)
      axes = [flip(a) if i in p["dimensions"] else a for i, a in enumerate(leaf.axes)]
      return [leaf._replace(axes=tuple(axes))]
    case "slice" | "dynamic_slice" | "split":
      return [_slice(leaf, shape) for shape in shapes]
  return [leaf]


#: Primitives that only move entries (or change every sign, which no norm sees).
MOVES = {"reshape", "squeeze", "broadcast_in_dim", "transpose", "rev", "slice", "dynamic_slice"}
MOVES |= {"split", "convert_element_type", "copy", "neg", "reduce_precision", "name"}
MOVES |= {"stop_gradient", "sharding_constraint", "device_put"}


def expand(leaf: Leaf, shape: Shape) -> Leaf:
  """Axes of size 1, or a number, copied to `shape`, as elementwise operations do."""
  size = lambda atoms: math.prod(a.size for a in atoms)
  copies = lambda atoms, n: () if size(atoms) == n else (Atom(None, n),)
  axes = leaf.axes if len(leaf.axes) == len(shape) else ((),) * len(shape)
  return leaf._replace(axes=tuple(a + copies(a, n) for a, n in zip(axes, shape, strict=True)))


def reshape(leaf: Leaf, shape: Shape) -> Leaf | None:
  """The atoms grouped to axes of other sizes, split where they must be; None if they mix."""
  left, stacked = deque(atom for atoms in leaf.axes for atom in atoms), list(leaf.stacked)
  axes: list[tuple[Atom, ...]] = []
  for n in shape:
    group: list[Atom] = []
    if n == 1 and left and left[0].size == 1:
      group.append(left.popleft())
    while (wanted := n // math.prod(a.size for a in group)) > 1:
      if not left:
        return None
      atom = left.popleft()
      if atom.is_picked and atom.axis is not None:
        stacked.append(atom.axis)
      elif wanted % atom.size == 0:
        group.append(atom)
      elif atom.size % wanted == 0 and atom.is_whole and not atom.is_joined:
        group.append(atom._replace(size=wanted))
        left.appendleft(atom._replace(size=atom.size // wanted))
      else:
        return None
    if math.prod(a.size for a in group) != n:
      return None
    axes.append(tuple(group))
  if any(atom.size != 1 for atom in left):
    return None
  stacked += [atom.axis for atom in left if atom.is_picked and atom.axis is not None]
  if axes:
    axes[-1] += tuple(atom for atom in left if not atom.is_picked)
  return leaf._replace(axes=tuple(axes), stacked=tuple(stacked))


def _slice(leaf: Leaf, shape: Shape) -> Leaf | None:
  axes = list(leaf.axes)
  for k, (atoms, n) in enumerate(zip(leaf.axes, shape, strict=True)):
    if math.prod(a.size for a in atoms) == n:
      continue
    long = [a for a in atoms if a.size > 1]
    if len(long) != 1 or long[0].is_joined:
      return None
    axes[k] = (long[0]._replace(size=n, is_whole=long[0].axis is None),)
  return leaf._replace(axes=tuple(axes))


def joined(leaf: Leaf, axis: int, size: int) -> Leaf | None:
  """A leaf after something was concatenated to it along an axis of the value."""
  atoms = leaf.axes[axis]
  long, short = [a for a in atoms if a.size > 1], tuple(a for a in atoms if a.size == 1)
  if len(long) > 1 or any(a.axis is None for a in long) or any(a.is_picked for a in short):
    return None
  if long:
    new = (long[0]._replace(size=size, is_whole=False, is_joined=True), *short)
  elif len(short) == 1:  # an axis of size 1 of the leaf, part of a longer one now
    new = (short[0]._replace(size=size, is_whole=False, is_joined=True),)
  else:
    new = (Atom(None, size, is_joined=True), *short)
  return leaf._replace(axes=(*leaf.axes[:axis], new, *leaf.axes[axis + 1 :]))


def unstack(leaf: Leaf) -> Leaf:
  """A turn's part of a leaf that a scan runs over."""
  first = tuple(atom.axis for atom in leaf.axes[0] if atom.axis is not None)
  return leaf._replace(axes=leaf.axes[1:], stacked=(*leaf.stacked, *first))


# ---- operators ----


def dense(leaf: Leaf, roles: Sequence[str]) -> Dense:
  """The matrix that a leaf is, from the role ``in``, ``out`` or ``batch`` of the value's axes."""
  by_role = _axes_by_role(leaf, roles)
  missing = set(range(len(leaf.shape))).difference(*by_role.values())
  by_role["out" if by_role["in"] else "in"] |= missing  # of size 1
  if not by_role["in"] or not by_role["out"]:
    msg = "it is a vector here, and an operator has input and output axes: keep it as a matrix"
    raise Unreadable(msg + " with an axis of size 1")
  return Dense(*(tuple(sorted(by_role[role])) for role in ("in", "out", "batch")))


def diagonal(leaf: Leaf) -> Diagonal:
  """The scaling that a leaf is in an elementwise product."""
  n = len(set(leaf.stacked))
  if set(leaf.stacked) != set(range(n)) or any(
    atom.axis in leaf.stacked for atoms in leaf.axes for atom in atoms
  ):
    msg = f"it is a scaling stacked along the axes {sorted(set(leaf.stacked))}; a Diagonal's are"
    raise Unreadable(msg + " its leading ones")
  return Diagonal(tuple(range(n)))


def _axes_by_role(leaf: Leaf, roles: Sequence[str]) -> dict[str, set[int]]:
  found: dict[str, set[int]] = {"in": set(), "out": set(), "batch": set()}
  for atoms, role in zip(leaf.axes, roles, strict=True):
    for atom in atoms:
      if atom.axis is not None:
        found[role].add(atom.axis)
      elif atom.size > 1 and not atom.is_joined and role != "batch":
        msg = "copies of it, side by side, make the matrix that is applied"
        raise Unreadable(msg)
  # A factor of an axis that was picked stacks nothing: it leaves a slice of that axis.
  found["batch"] |= set(leaf.stacked) - found["in"] - found["out"]
  if len(set().union(*found.values())) < sum(map(len, found.values())):
    msg = f"of one of its axes a part is contracted or a batch and another is not: {found}"
    raise Unreadable(msg)
  return found


def convolution(leaf: Leaf, eqn: Any) -> Convolution:
  """The convolution that a leaf is the kernel of, at the size that its input has."""
  p = eqn.params
  groups, (to, source, *places) = p["feature_group_count"], p["dimension_numbers"].rhs_spec
  own = [[a for a in atoms if a.axis is not None] for atoms in leaf.axes]
  batch, out, taps = list(leaf.stacked), own[to], [own[k] for k in places]
  if len(out) > 1 and groups % out[0].size == 0 and out[0].is_whole:
    # vmap over kernels and inputs writes the stack as groups, slowest first.
    batch.append(out[0].axis)
    groups, out = groups // out[0].size, out[1:]
  every = [*taps, own[source], out]
  axes = [a.axis for atoms in every for a in atoms]
  whole = every if groups > 1 else taps
  is_kernel = sorted([*axes, *batch]) == list(range(len(leaf.shape)))
  is_kernel &= all(len(atoms) == 1 for atoms in every)
  is_kernel &= all(a.is_whole and a.size == leaf.shape[a.axis] for t in whole for a in t)
  flips = {a.is_flipped for atoms in taps for a in atoms if a.size > 1}
  if not is_kernel or len(flips) > 1 or p["batch_group_count"] != 1:
    msg = "it is part of the kernel of a convolution, in a form that no axes of it describe"
    raise Unreadable(msg)
  # The spatial axes in the leaf's order, which need not be the program's.
  order = sorted(range(len(taps)), key=lambda i: axes[i])
  of = lambda values: tuple(values[i] for i in order)
  shape = eqn.inputs[0].aval.shape
  return Convolution(
    of([shape[k] for k in p["dimension_numbers"].lhs_spec[2:]]),
    strides=of(p["window_strides"]),
    padding=of(p["padding"]),
    input_dilation=of(p["lhs_dilation"]),
    kernel_dilation=of(p["rhs_dilation"]),
    feature_group_count=groups,
    in_axis=axes[-2],
    out_axis=axes[-1],
    batch_axes=tuple(sorted(batch)),
    flip_kernel=flips == {True},
  )


def lookup(leaf: Leaf, sizes: Shape) -> Dense | None:
  """The matrix from one-hot rows to what is looked up; None for a table of numbers."""
  if len(sizes) == 1:
    return None
  picked = [k for k, n in enumerate(sizes) if n < math.prod(a.size for a in leaf.axes[k])]
  if len(sizes) != 2 or len(picked) != 1 or sizes[picked[0]] != 1:
    msg = "slices of it that the data choose can be an embedding's or a stack of matrices"
    raise Unreadable(msg)
  return dense(leaf, ["in" if k in picked else "out" for k in range(2)])


def transposes(one: LinearOperator, other: LinearOperator) -> bool:
  """Whether one matrix is the other's transpose: the same norm, vectors and penalty."""
  if not isinstance(one, Dense) or not isinstance(other, Dense):
    return False
  return one == dataclasses.replace(other, in_axes=other.out_axes, out_axes=other.in_axes)
