"""What a report says of each operator in a checkpoint, measured leaf by leaf."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lipjax
from lipjax.checkpoints.checkpoint import Checkpoint
from lipjax.measure.stable_rank import stable_rank
from lipjax.operators.base import LinearOperator
from lipjax.operators.describe import short_name
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import AmbiguousLeafError
from lipjax.operators.resolve import Overrides, decide

LAYOUTS = {
  "flax": lipjax.flax_layout,
  "haiku": lipjax.haiku_layout,
  "torch": lipjax.torch_layout,
  "equinox": lipjax.equinox_layout,
}
#: Bytes that are read at a time.
BATCH = 2**26
#: A bound from above costs a dozen products of a matrix with itself: up to that many rows or
#: columns it is computed unless it is asked for anyway.
BOUNDED_UP_TO = 1024
#: Of norms without an interval, whose errors are some 1e-5 then, the last digit that is printed.
TOL = 1e-4


class Row(NamedTuple):
  """One operator; of a stack of them the one whose norm is largest.

  Attributes:
    path: of the leaf.
    operator: as it would be written.
    shape: of the leaf.
    dtype: of the leaf.
    copies: how many operators are stacked in it.
    lower: at most the spectral norm, and close to it.
    upper: at least the spectral norm; None where it was not computed.
    frobenius: the Frobenius norm of all of the leaf.
    stable_rank: of that operator.
  """

  path: str
  operator: str
  shape: tuple[int, ...]
  dtype: str
  copies: int
  lower: float
  upper: float | None
  frobenius: float
  stable_rank: float


class Chosen(NamedTuple):
  """What of a checkpoint is reported.

  Attributes:
    layout: the name of the layout.
    operators: by path.
    problems: leaves that could not be told, and what to write.
    n_outside: leaves outside of params, as an optimizer's state.
  """

  layout: str
  operators: dict[str, LinearOperator]
  problems: dict[str, str]
  n_outside: int


def choose(
  checkpoint: Checkpoint, layout: str, overrides: Overrides, match: str, *, has_all: bool
) -> Chosen:
  """Which leaves are operators.

  Args:
    checkpoint: opened.
    layout: a name of `LAYOUTS`, or ``"auto"`` for the one that knows most leaves.
    overrides: ``{regex: operator or None}``.
    match: a regular expression that is searched for in paths.
    has_all: also what stands outside of ``params`` where there is such a subtree.
  """
  is_weight = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  leaves = {path: x for path, x in checkpoint.leaves.items() if is_weight(x)}
  # A training state holds moments of the same shapes and names.
  inside = {path: x for path, x in leaves.items() if "params" in path.split("/")[:-1]}
  kept = leaves if has_all or not inside else inside
  some = {path: x for path, x in kept.items() if re.search(match, path)}
  used = {key: op for key, op in overrides.items() if any(re.fullmatch(key, p) for p in some)}
  names = LAYOUTS if layout == "auto" else [layout]
  decisions = {name: decide(some, LAYOUTS[name], used) for name in names}
  best = min(decisions, key=lambda name: len(decisions[name][1]))
  decided, problems = decisions[best]
  operators = {path: op for path, op in decided.items() if op is not None}
  unused = set(overrides) - set(used)
  texts = {path: _advice(problem) for path, problem in problems.items()}
  texts |= {key: f"--override {key}: no path is matched by it." for key in unused}
  unread = {path: x for path, x in checkpoint.leaves.items() if path not in leaves}
  texts |= {
    path: _unread(path, x)
    for path, x in unread.items()
    if x.dtype.kind in "cV" and re.search(match, path)
  }
  return Chosen(best, operators, texts, len(leaves) - len(kept))


def _unread(path: str, leaf: Any) -> str:
  """Of what is neither real numbers nor counters."""
  if leaf.dtype.kind == "c":
    return f"{path} {leaf.shape}: {leaf.dtype}; norms are of real weights."
  return f"{path} {leaf.shape}: {leaf.dtype}, no numbers; NumPy's files do not keep bfloat16."


def _advice(problem: Exception | str) -> str:
  """What to write on the command line."""
  if not isinstance(problem, AmbiguousLeafError):
    return str(problem)
  choices = (choice.split("  #")[0] for choice in problem.choices)
  option = f"--override {re.escape(problem.path)!r}=… with one of: {', '.join(choices)}"
  return f"{problem.path} {problem.shape}: {problem.reason}; {option}."


def measure(
  checkpoint: Checkpoint,
  operators: Mapping[str, LinearOperator],
  *,
  has_bounds: bool,
  advance: Callable[[int], Any] = lambda n_bytes: None,
) -> Iterator[Row]:
  """A row for each operator, in the order of the checkpoint.

  Args:
    checkpoint: opened.
    operators: by path.
    has_bounds: whether also large matrices have a bound from above.
    advance: is told how many bytes were measured.
  """
  paths = [path for path in checkpoint.leaves if path in operators]
  for batch in checkpoint.batches(paths, BATCH):
    for path in list(batch):
      w = batch.pop(path)
      yield _row(path, operators[path], w, has_bounds)
      advance(w.nbytes)


def _row(path: str, operator: LinearOperator, w: np.ndarray, has_bounds: bool) -> Row:
  # Not rounded to float32, of which an interval would be another one.
  with jax.enable_x64(True) if w.dtype == np.float64 else contextlib.nullcontext():
    return _measured(path, operator, w, has_bounds)


def _measured(path: str, operator: LinearOperator, w: np.ndarray, has_bounds: bool) -> Row:
  # One name for all leaves: programs are compiled for shapes.
  tree, layout = {"w": jnp.asarray(w)}, {"w": operator}
  is_bounded = has_bounds or isinstance(operator, Diagonal) or _side(operator, w) <= BOUNDED_UP_TO
  if is_bounded:
    bounds = lipjax.spectral_norm_bounds(tree, layout=layout)["w"]
    lower, upper = bounds.lower, np.ravel(bounds.upper)
  else:
    lower, upper = lipjax.spectral_norms(tree, layout=layout, tol=TOL)["w"], None
  ranks = np.ravel(stable_rank(operator, tree["w"], lower))
  frobenius, lower = np.ravel(lipjax.frobenius_norms(tree, layout=layout)["w"]), np.ravel(lower)
  at = functools.partial(at_largest, lower)
  return Row(
    path=path,
    operator=short_name(operator),
    shape=tuple(w.shape),
    dtype=str(w.dtype),
    copies=lower.size,
    lower=at(lower),
    upper=None if upper is None else at(upper),
    frobenius=float(np.sqrt(np.sum(np.square(frobenius, dtype=np.float64)))),
    stable_rank=at(ranks),
  )


def at_largest(norms: np.ndarray, values: np.ndarray) -> float:
  """The value of the slice whose norm is largest, or NaN, which is what should be seen."""
  return float(values[np.argmax(np.where(np.isnan(norms), np.inf, norms))]) if norms.size else 0.0


def _side(operator: LinearOperator, w: np.ndarray) -> int:
  """The smaller one of an operator's matrix."""
  one = operator.slice_operator()
  shape = tuple(n for axis, n in enumerate(w.shape) if axis not in operator.stack_axes)
  return min(math.prod(one.input_shape(shape)), math.prod(one.output_shape(shape)))


def totals(rows: Sequence[Row]) -> dict[str, Any]:
  """Of the operators of leaves together; norms of those whose weights are finite."""
  rows = [row for row in rows if row.operator != "Product"]
  norms = [row.lower for row in rows if math.isfinite(row.lower)]
  return {
    "operators": sum(row.copies for row in rows),
    "leaves": len(rows),
    "parameters": sum(math.prod(row.shape) for row in rows),
    "largest": max(norms, default=0.0),
    "sum_of_squared_norms": float(sum(x**2 for x in norms)),
    "frobenius": math.sqrt(sum(row.frobenius**2 for row in rows)),
  }
