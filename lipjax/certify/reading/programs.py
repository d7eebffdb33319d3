"""Programs inside of primitives: branches, loops and solvers, written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node, Params
from lipjax.certify.reading.complex import Pair
from lipjax.certify.reading.interp import without_calls
from lipjax.certify.reading.scatter_apply import has_function, written_out
from lipjax.jaxprs.source import source_line
from lipjax.jaxprs.versions import holds_program, scan_counts

#: Programs inside of a primitive that its name says as well.
NAMED = frozenset({"scatter", *(f"scatter-{what}" for what in ("add", "sub", "max", "min", "mul"))})
#: A loop with more turns is refused: every turn becomes nodes of its own.
MAX_TURNS = 4096


def read_program(reader: Any, name: str, eqn: Any, operands: Sequence[Any]) -> list[Any] | None:
  """The results of a primitive that holds programs; None of others."""
  if name in READERS:
    return READERS[name](reader, eqn, operands)
  if name == "scatter" and has_function(eqn):
    return applied(reader, eqn, operands)
  if name not in NAMED and holds_program(eqn.params):
    text = f"There is no rule for {eqn.primitive.name!r} with a function of its own"
    return reader.failed(eqn, f"{text}{source_line(eqn)}.")
  return None


def applied(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """``x.at[places].apply(f)``, as a choice of f(x) and x."""
  x, *constants = operands
  if reader.moves(constants) or not reader.moves([x]) or isinstance(x, Pair):
    return reader.failed(
      eqn,
      f"A scatter with a function of its own{source_line(eqn)}, of updates"
      " that move, or of complex numbers, has no rule. Write x.at[places].apply(f) of real ones,"
      " or set(f(x[places], updates)).",
    )
  try:
    return [reader.of_function(written_out(eqn), x, *constants)]
  except CertifyError as error:
    return reader.failed(eqn, str(error))


def solve(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """The program that solves a linear system, of which only the right side may move."""
  lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
  start = lengths.matvec + lengths.vecmat
  n = start + lengths.solve + lengths.transpose_solve
  if reader.moves(operands[:n]):
    return reader.failed(
      eqn,
      f"A linear system{source_line(eqn)} with a matrix that depends on the"
      " input has no rule: its slope has no bound where that is singular.",
    )
  given = [*operands[start : start + lengths.solve], *operands[n:]]
  return reader.run(jaxprs.solve, given, (eqn, *eqn.calls))


def cond(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """The branch that a constant chooses; of all of them the right one if that is traced."""
  which, *rest = operands
  branches, calls = eqn.params["branches"], (eqn, *eqn.calls)
  if reader.moves([which]):
    return reader.failed(
      eqn,
      f"Which branch of a cond is taken{source_line(eqn)} depends on the"
      " input: between two branches the result may jump. Only a constant may"
      " choose.",
    )
  if not isinstance(which, int):
    return reader.run(branches[min(max(int(which), 0), len(branches) - 1)], rest, calls)
  clip = lambda i: jnp.clip(i.astype(jnp.int32), 0, len(branches) - 1)
  index = reader.of_function(clip, which)
  results = [reader.run(branch, rest, calls) for branch in branches]
  if any(isinstance(x, Pair) for x in itertools.chain(*results)):
    text = f"A traced choice between branches{source_line(eqn)} of complex numbers has no rule."
    return reader.failed(eqn, text)
  return [_chosen(reader, index, cases) for cases in zip(*results, strict=True)]


def _chosen(reader: Any, index: Any, cases: Sequence[Any]) -> Any:
  inputs = tuple(map(reader.place, (index, *cases)))
  first, moves = reader.nodes[inputs[1]], reader.moves(cases)
  what = "select_n", inputs, Params(), first.shape, first.dtype, primitives.select_n_p
  return reader.add(Node(*what, moves=moves))


def scan(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """Written out: each turn is a layer with its own weights."""
  p, length = eqn.params, eqn.params["length"]
  if length > MAX_TURNS:
    return reader.failed(
      eqn, f"A scan of {length} turns{source_line(eqn)}; at most {MAX_TURNS} are written out."
    )
  n_consts, n_carry = scan_counts(eqn.inputs, eqn.outputs, p["jaxpr"])
  consts, carry = operands[:n_consts], list(operands[n_consts : n_consts + n_carry])
  xs, rows, body = operands[n_consts + n_carry :], [], without_calls(p["jaxpr"], (eqn, *eqn.calls))
  if any(isinstance(x, Pair) for x in xs):
    return reader.failed(eqn, _complex_rows(eqn))
  turns = range(length)[::-1] if p["reverse"] else range(length)
  for turn in turns:
    of_turn = [*consts, *carry, *(reader.row(x, turn) for x in xs)]
    results = body.run(of_turn, reader.apply, reader.of_constant)
    carry, row = results[:n_carry], results[n_carry:]
    rows.append(row)
  avals = [x.aval for x in eqn.outputs[n_carry:]]
  if not rows:
    return [*carry, *(np.zeros(aval.shape, aval.dtype) for aval in avals)]
  if any(isinstance(x, Pair) for x in itertools.chain(*rows)):
    return reader.failed(eqn, _complex_rows(eqn))
  columns = zip(*(rows[::-1] if p["reverse"] else rows), strict=True)
  return [
    *carry,
    *(
      reader.stacked(aval.shape, aval.dtype, column)
      for aval, column in zip(avals, columns, strict=True)
    ),
  ]


def _complex_rows(eqn: Any) -> str:
  return (
    f"A scan over rows of complex numbers{source_line(eqn)} has no rule. Stack their real and"
    " imaginary parts."
  )


def loop(reader: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """Written out, if how often it turns is a constant."""
  p, calls = eqn.params, (eqn, *eqn.calls)
  n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
  cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
  carry = list(operands[n_cond + n_body :])
  goes_on, body = without_calls(p["cond_jaxpr"], calls), without_calls(p["body_jaxpr"], calls)
  for _ in range(MAX_TURNS + 1):
    (now,) = goes_on.run([*cond_consts, *carry], reader.apply, reader.of_constant)
    if isinstance(now, int):
      return reader.failed(
        eqn,
        f"How often a while loop turns{source_line(eqn)} must not depend on"
        " the input, nor on a value that is traced.",
      )
    if not bool(now):
      return carry
    carry = body.run([*body_consts, *carry], reader.apply, reader.of_constant)
  return reader.failed(
    eqn, f"A while loop of more than {MAX_TURNS} turns{source_line(eqn)} is not written out."
  )


#: By the primitive's name.
READERS = {
  "cond": cond,
  "custom_linear_solve": solve,
  "scan": scan,
  "while": loop,
}
