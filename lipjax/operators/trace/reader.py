"""Reading a program: which leaf meets the data where, and how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from lipjax.jaxprs.inline import Program, inline
from lipjax.jaxprs.source import source_line
from lipjax.jaxprs.versions import name_of, scan_counts
from lipjax.operators.base import LinearOperator
from lipjax.operators.trace.leaves import (
  MOVES,
  Leaf,
  Unreadable,
  convolution,
  dense,
  diagonal,
  lookup,
)
from lipjax.operators.trace.values import (
  BESIDE,
  Array,
  Value,
  Weight,
  combined,
  constant_axes,
  join,
  moved,
  multiplied,
  opaque,
  spread,
)


class Use(NamedTuple):
  """One meeting of a leaf and the data: an operator, or a reason why it is none."""

  path: str
  operator: LinearOperator | None
  where: str
  reason: str = ""
  choices: tuple[str, ...] = ()


class Reader:
  """Runs a program on leaves and data, and notes every meeting of the two."""

  def __init__(self):
    self.uses: list[Use] = []

  def run(self, program: Program, operands: Sequence[Value]) -> list[Value]:
    """What the results of a program are."""

    def apply(eqn: Any, xs: list[Value]) -> list[Value]:
      results = self._results(eqn, xs)
      return results if isinstance(results, list) else [results] * len(eqn.outputs)

    return program.run(operands, apply, constant=lambda _: Array(False))

  def blame(self, weight: Weight, reason: str, eqn: Any = None) -> Array:
    """Every leaf of `weight` is used in a way that is no operator."""
    where = source_line(eqn) if eqn else ""
    self.uses += [Use(path, None, where, reason) for path in sorted(weight.paths)]
    return Array(True)

  def _results(self, eqn: Any, xs: list[Value]) -> Value | list[Value]:
    """What an equation gives: a list, or one value for all of its results."""
    name = name_of(eqn.primitive)
    if name in ("scan", "while", "cond"):
      return getattr(self, f"_{name}")(eqn, xs)
    weights = [x for x in xs if isinstance(x, Weight)]
    is_data = any(isinstance(x, Array) and x.is_data for x in xs)
    mixed = [x.mixed for x in xs if isinstance(x, Array) and x.mixed]
    if not weights:
      if mixed and name in ("dot_general", "conv_general_dilated"):
        text = "its entries and the data's, one by one, make a weight that is applied to data"
        return self.blame(opaque(mixed), text, eqn)
      stays = mixed and name in (*MOVES, "add", "sub", "mul", "div", "select_n")
      return Array(is_data, constant_axes(name, eqn, xs), opaque(mixed) if stays else None)
    if name in MOVES and weights == xs[:1] and not is_data:
      return moved(weights[0], name, eqn)
    if name in ("mul", "div"):
      return self._multiply(eqn, xs, is_division=name == "div")
    outer = [self.blame(w, f"{w.outer}, and then {name!r}", eqn) for w in weights if w.outer]
    if outer:
      return Array(True)
    if not is_data:
      return combined(weights, name, eqn, xs)
    if name in BESIDE:
      mixed += [w for w in weights if w.fills(eqn.outputs[0].aval.shape)]
      return Array(True, constant_axes(name, eqn, xs), opaque(mixed) if mixed else None)
    at = xs.index(weights[0])
    if name == "dot_general" and len(weights) == 1:
      contracted, batch = (sides[at] for sides in eqn.params["dimension_numbers"])
      rank = len(eqn.inputs[at].aval.shape)
      role = lambda k: "in" if k in contracted else "batch" if k in batch else "out"
      roles = [role(k) for k in range(rank)]
      return self._apply(eqn, weights[0], lambda leaf: dense(leaf, roles))
    if name == "conv_general_dilated" and xs[1:] == weights:
      return self._apply(eqn, weights[0], lambda leaf: convolution(leaf, eqn))
    if name in ("gather", "dynamic_slice") and xs[:1] == weights:
      sizes = eqn.params["slice_sizes"]
      return self._apply(eqn, weights[0], lambda leaf: lookup(leaf, sizes))
    return Array(bool([self.blame(w, f"it meets data in {name!r}", eqn) for w in weights]))

  def _apply(self, eqn: Any, weight: Weight, read: Callable[[Leaf], Any]) -> Array:
    """Notes the operator that `read` says of every leaf, if the leaf alone is applied."""
    line = source_line(eqn)
    done = weight.change or weight.factor
    for path in weight.others.difference(leaf.path for leaf in weight.leaves):
      reason = "it is one part of what a weight is computed from, which is applied"
      self.uses.append(Use(path, None, line, reason))
    for leaf in weight.leaves:
      try:
        operator = read(leaf)
      except Unreadable as error:
        self.uses.append(Use(leaf.path, None, line, str(error)))
        continue
      use = Use(leaf.path, operator, line)
      if done and operator is not None:
        reason = f"it is {done} before it is applied, and the norm of the result is another"
        use = Use(leaf.path, None, line, reason, (f"{operator!r}  # the leaf by itself",))
      self.uses.append(use)
    return Array(True)

  def _multiply(self, eqn: Any, xs: list[Value], *, is_division: bool) -> Value:
    a, b = xs
    shape = eqn.outputs[0].aval.shape
    if isinstance(a, Weight) and isinstance(b, Weight):
      return multiplied(a, b, eqn, is_division=is_division)
    if isinstance(a, Array) and isinstance(b, Weight):
      if is_division:  # no linear function of the leaf
        return Array(True) if a.is_data else opaque([b])
      a, b = b, a
    a, b = cast("Weight", a), cast("Array", b)
    at = xs.index(b)
    constant = spread(b, eqn.inputs[at].aval.shape, shape)
    weight = a.expanded(shape)
    if not b.is_data:
      is_number = all(k in constant or n == 1 for k, n in enumerate(shape))
      text = f"multiplied by an array{source_line(eqn)}"
      return weight if is_number else weight._replace(factor=weight.factor or text)
    hidden = [leaf for leaf in weight.leaves for k in constant if leaf.varies(k)]
    if hidden:
      # Normalization multiplies its scale and 1/std first; the input comes next.
      text = f"multiplied{source_line(eqn)} by data that is constant along an axis of it"
      return weight._replace(outer=weight.outer or f"it is {text}, which makes an outer product")
    data = self._apply(eqn, weight._replace(factor="", others=frozenset()), diagonal)
    return data._replace(mixed=weight if weight.fills(shape) else None)

  def _scan(self, eqn: Any, xs: list[Value]) -> list[Value]:
    body = inline(eqn.params["jaxpr"])
    n_consts, n_carry = scan_counts(eqn.inputs, eqn.outputs, eqn.params["jaxpr"])
    n_fixed = n_consts + n_carry
    rows = [x.unstacked() for x in xs[n_fixed:]]
    run = lambda carry: self.run(body, [*xs[:n_consts], *carry, *rows])
    results = self._until_stable(run, xs[n_consts:n_fixed], n_carry)
    return [*results[:n_carry], *(x.forgotten() for x in results[n_carry:])]

  def _while(self, eqn: Any, xs: list[Value]) -> list[Value]:
    body, n_cond = inline(eqn.params["body_jaxpr"]), eqn.params["cond_nconsts"]
    n_body = eqn.params["body_nconsts"]
    consts, carry = xs[n_cond : n_cond + n_body], xs[n_cond + n_body :]
    return self._until_stable(lambda carry: self.run(body, [*consts, *carry]), carry, len(carry))

  def _until_stable(self, run: Any, carry: list[Value], n_carry: int) -> list[Value]:
    """The last turn's results, where a carry may be whatever it was in any turn."""
    plain = lambda x: x.forgotten() if isinstance(x, Array) else x
    carry, n_uses = [plain(x) for x in carry], len(self.uses)
    while True:
      results = run(carry)
      joint = [plain(join(a, b)) for a, b in zip(carry, results[:n_carry], strict=True)]
      if joint == carry:
        return [*carry, *results[n_carry:]]
      carry = joint
      del self.uses[n_uses:]

  def _cond(self, eqn: Any, xs: list[Value]) -> list[Value]:
    every = [self.run(inline(branch), xs[1:]) for branch in eqn.params["branches"]]
    return [functools.reduce(join, column) for column in zip(*every, strict=True)]
