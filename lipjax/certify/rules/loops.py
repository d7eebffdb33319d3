"""Loops, written out: each turn has its own weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node, Recipe
from lipjax.certify.interpreter import evaluate, rule_for
from lipjax.certify.jaxprs import scan_counts, source_line
from lipjax.certify.linear_parts import merged, moved

#: A loop with more turns is refused: every turn becomes nodes of its own.
MAX_TURNS = 4096


@rule_for("scan")
def scan(eqn: Any, *operands: Any) -> Any:
  """Written out: each turn is a layer with its own weights."""
  p = eqn.params
  length = p["length"]
  if length > MAX_TURNS:
    msg = f"A scan of {length} turns{source_line(eqn)}; at most {MAX_TURNS} are written out."
    raise CertifyError(msg)
  n_consts, n_carry = scan_counts(eqn)
  consts, carry = operands[:n_consts], list(operands[n_consts : n_consts + n_carry])
  xs, rows = operands[n_consts + n_carry :], []
  turns = range(length)[::-1] if p["reverse"] else range(length)
  for turn in turns:
    results = evaluate(p["jaxpr"], [*consts, *carry, *(_at(x, turn) for x in xs)])
    carry, row = results[:n_carry], results[n_carry:]
    rows.append(row)
  if not rows:
    return [*carry, *(jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[n_carry:])]
  columns = zip(*(rows[::-1] if p["reverse"] else rows), strict=True)
  avals = [v.aval for v in eqn.outvars[n_carry:]]
  return [*carry, *(_stacked(*column) for column in zip(avals, columns, strict=True))]


@rule_for("while")
def while_(eqn: Any, *operands: Any) -> Any:
  """Written out, if how often it turns is a constant."""
  p = eqn.params
  n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
  cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
  carry = list(operands[n_cond + n_body :])
  for _ in range(MAX_TURNS + 1):
    (goes_on,) = evaluate(p["cond_jaxpr"], [*cond_consts, *carry])
    if isinstance(goes_on, Node | Tracer):
      msg = f"How often a while loop turns{source_line(eqn)} must not depend on the input."
      raise CertifyError(msg)
    if not bool(goes_on):
      return carry
    carry = evaluate(p["body_jaxpr"], [*body_consts, *carry])
  msg = f"A while loop of more than {MAX_TURNS} turns{source_line(eqn)} is not written out."
  raise CertifyError(msg)


def _at(x: Any, turn: Any) -> Any:
  if isinstance(x, Tracer):
    return x[turn]
  if not isinstance(x, Node):
    with jax.ensure_compile_time_eval():
      return jnp.asarray(x)[turn]
  aval = jax.ShapeDtypeStruct(x.shape[1:], x.aval.dtype)
  return Node(aval, moved(lambda x: x[turn]), (x,))


def _stacked(aval: Any, column: Any) -> Any:
  if not any(isinstance(x, Node) for x in column):
    return jnp.stack(column)
  stack = lambda *values: jnp.stack(values)
  node = merged(aval, stack, column)
  node.recipe = Recipe("stack", {}, tuple(column), stack)
  return node
