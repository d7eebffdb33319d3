"""The layout of a function's params, read off the program that the function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lipjax.jaxprs.inline import inline
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import AmbiguousLeafError
from lipjax.operators.paths import float_leaves, path_string
from lipjax.operators.resolve import LayoutError, Overrides, decide
from lipjax.operators.trace.leaves import Leaf, transposes
from lipjax.operators.trace.reader import Reader, Use
from lipjax.operators.trace.values import Array, Weight


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
  any of these, slice by slice    the operator of a slice, with the stack as batch axes
  added, compared, concatenated   ``None``: a bias
  through a nonlinear function    ``None``: a running variance, a temperature ``exp(t)``, a
                                  divisor
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
    >>> params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    >>> layout = lipjax.trace_layout(
    ...   lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]), params, jnp.ones(8)
    ... )
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
