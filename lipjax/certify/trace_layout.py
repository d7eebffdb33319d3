"""The layout of a function's params, read off the program that the function is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lipjax.certify.errors import source_line
from lipjax.certify.inline import Constant, Program, inline
from lipjax.certify.trace_rules import (
  BESIDE,
  MOVES,
  Array,
  Leaf,
  Unreadable,
  Value,
  Weight,
  combined,
  constant_axes,
  convolution,
  dense,
  diagonal,
  join,
  lookup,
  moved,
  multiplied,
  name_of,
  opaque,
  spread,
  transposes,
)
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import AmbiguousLeafError
from lipjax.operators.paths import float_leaves, path_string
from lipjax.operators.resolve import LayoutError, Overrides, decide


def trace_layout(
  fn: Callable[..., Any],
  params: Any,
  *args: Any,
  layout_overrides: Overrides | None = None,
) -> dict[str, LinearOperator | None]:
  r"""The operator that every leaf of `params` is in ``fn(params, *args)``, read off its jaxpr.

  Each leaf is followed through what only moves its entries (reshapes, transposes, slices,
  concatenation, casts, inside calls and loops too) to where it meets an array that depends on
  `args`. What happens there is its operator, in the leaf's own axes. No name of a leaf or of
  a function is looked at.

  ==============================  ==========================================================
  where the leaf meets the data   operator
  ==============================  ==========================================================
  matrix product                  `Dense`: contracted axes in, free axes out, batch axes batch
  convolution                     `Convolution` at the size of this input, transposed ones too
  entry by entry, as a factor     `Diagonal`; dividing by a standard deviation is another map
  rows looked up by the data      ``Dense()``: from one-hot tokens to features
  any of these, in a scan over    the operator of a slice, with the stack as batch axes
  the leaf or index by index
  added, compared, concatenated   ``None``: a bias
  entry by entry, through a       ``None``: a running variance, a temperature ``exp(t)``, a
  nonlinear function              divisor
  nowhere                         ``None``
  ==============================  ==========================================================

  Signs and numbers that multiply a leaf are other maps. So is padding before a convolution
  (`jax.numpy.pad`; Flax's ``"CIRCULAR"``, ``"REFLECT"`` and ``"CAUSAL"``), which is then
  ``"VALID"`` on the padded size, and the fold after a circular ``ConvTranspose``. A leaf used
  in slices of its input or output axes, such as a fused query, key and value, is the operator
  of the whole leaf. A stack under `jax.vmap` is a batch if the input is stacked too; it is an
  output axis if all slices get one input, and a stacked scale is one scale of several axes. A
  matrix that is used transposed too (tied embeddings) is taken as at its first use: norms and
  penalties are the same.

  What is only part of a weight raises, since its norm is not that of what is applied: spectral
  and weight normalization, ``w + a @ b``, a masked or noisy kernel, ``1 + scale``.

  Guarantee: exact for `args` of these shapes: `fn` applies this operator with the leaf, or a
  slice of it, as its weight. Nothing is computed. Branches and results count whether or not
  they are used.

  Args:
    fn: a function of `params` and `args`.
    params: a pytree of arrays or `jax.ShapeDtypeStruct`: linen variables or params, an nnx
      state or module, Haiku params, an Equinox module. Give the same tree to the function
      that gets the layout.
    *args: the data: pytrees of arrays or `jax.ShapeDtypeStruct`. Anything else in them, such
      as ``False`` or ``None``, is passed to `fn` as it is.
    layout_overrides: ``{regex: operator or None}``; the first regex that matches a whole path
      decides, and the program is not asked.

  Returns:
    ``{path: operator or None}`` for every floating-point leaf, sorted by path; a `layout`
    wherever one is asked for.

  Raises:
    LayoutError: leaves that are two operators, part of a weight, or used in a way that is no
      operator (an outer product, a vector contracted, a primitive that is not known); names
      each leaf, where it is used, and the override to write. It is a `ValueError`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> from lipjax.certify.trace_layout import trace_layout
    >>> params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    >>> layout = trace_layout(lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]), params, jnp.ones(8))
    >>> layout["w"], layout["b"]
    (Dense(in_axes=(0,), out_axes=(1,), batch_axes=()), None)
    >>> round(float(lipjax.spectral_norms(params, layout=layout)["w"]), 4)
    5.6569
  """
  leaves = float_leaves(params)
  uses = _uses(fn, params, args)

  def layout(path: str, leaf: jax.ShapeDtypeStruct) -> LinearOperator | None:
    return _decided(path, tuple(leaf.shape), [use for use in uses if use.path == path])

  decided, problems = decide(leaves, layout, layout_overrides)
  if problems:
    lines = "\n".join(f"  - {problem}" for problem in problems.values())
    msg = f"Leaves that the program does not say the operator of ({len(problems)}):\n{lines}"
    raise LayoutError(msg)
  return {path: decided[path] for path in leaves}


class Use(NamedTuple):
  """One meeting of a leaf and the data: an operator, or a reason why it is none."""

  path: str
  operator: LinearOperator | None
  where: str
  reason: str = ""
  choices: tuple[str, ...] = ()


def _decided(path: str, shape: tuple[int, ...], uses: list[Use]) -> LinearOperator | None:
  for use in uses:
    if use.reason:
      reason = use.reason + use.where
      raise AmbiguousLeafError(path, shape, reason, (*use.choices, "None  # leave it out"))
  distinct: list[Use] = []
  for use in uses:
    known = [u.operator for u in distinct if u.operator is not None]
    if use.operator is not None and not any(
      use.operator == op or transposes(use.operator, op) for op in known
    ):
      distinct.append(use)
  if len(distinct) > 1:
    reason = "it is used as " + " and as ".join(f"{u.operator!r}{u.where}" for u in distinct)
    choices = tuple(repr(u.operator) for u in distinct)
    raise AmbiguousLeafError(path, shape, reason, (*choices, "None  # leave it out"))
  return distinct[0].operator if distinct else None


def _uses(fn: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> list[Use]:
  keyed, tree = jax.tree_util.tree_flatten_with_path(params)
  of_args, args_tree = jax.tree.flatten(args)
  floats = float_leaves(params)
  values = [*(leaf for _, leaf in keyed), *of_args]
  paths = [path_string(key) for key, _ in keyed] + [None] * len(of_args)
  # Integers and keys among the params that have values keep them: fn may need them concretely.
  abstract = lambda x: isinstance(x, jax.ShapeDtypeStruct)
  traced = [
    i
    for i, (path, x) in enumerate(zip(paths, values, strict=True))
    if (hasattr(x, "shape") and hasattr(x, "dtype") and (path in floats or path is None))
    or abstract(x)
  ]

  def flat(*arrays: Any) -> list[Any]:
    filled = list(values)
    for i, x in zip(traced, arrays, strict=True):
      filled[i] = x
    given = jax.tree.unflatten(tree, filled[: len(keyed)])
    out = fn(given, *jax.tree.unflatten(args_tree, filled[len(keyed) :]))
    return [x for x in jax.tree.leaves(out) if hasattr(x, "shape") and hasattr(x, "dtype")]

  program = inline(jax.make_jaxpr(flat)(*(values[i] for i in traced)))
  operands: list[Any] = []
  for i in traced:
    path = paths[i]
    if path in floats and path is not None:
      operands.append(Weight((Leaf.of(path, tuple(values[i].shape)),)))
    else:
      operands.append(Array(path is None))
  reader = Reader()
  for value in reader.run(program, operands):
    if isinstance(value, Weight) and value.outer:
      reader.blame(value, value.outer)
  return reader.uses


class Reader:
  """Runs a program on leaves and data, and notes every meeting of the two."""

  def __init__(self):
    self.uses: list[Use] = []

  def run(self, program: Program, operands: Sequence[Value]) -> list[Value]:
    """What the results of a program are."""
    known = dict(zip(program.inputs, operands, strict=True))
    read = lambda x: Array(False) if isinstance(x, Constant) else known[x]
    for eqn in program.equations:
      results = self._results(eqn, [read(x) for x in eqn.inputs])
      if not isinstance(results, list):
        results = [results] * len(eqn.outputs)
      known.update(zip(eqn.outputs, results, strict=True))
    return [read(x) for x in program.outputs]

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
    assert isinstance(a, Weight)
    assert isinstance(b, Array)
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
    # JAX 0.12 has other names for the counts; shapes say them in every version.
    shapes = lambda values: [v.aval.shape for v in values]
    is_row = [a != b for a, b in zip(shapes(eqn.inputs), shapes(body.inputs), strict=True)]
    is_new = [a != b for a, b in zip(shapes(eqn.outputs), shapes(body.outputs), strict=True)]
    n_carry, n_fixed = is_new.count(False), is_row.count(False)
    n_consts = n_fixed - n_carry
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
