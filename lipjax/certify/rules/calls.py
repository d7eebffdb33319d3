"""Functions that are called: read through, never by their name or their derivative rule."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node, Recipe
from lipjax.certify.interpreter import evaluate, rule_for
from lipjax.certify.jaxprs import called_by, callee, source_line
from lipjax.certify.linear_parts import merged


@rule_for("jit", "call", "closed_call", "eval_jaxpr", "checkpoint", "remat2")
def call(eqn: Any, *operands: Any) -> Any:
  """Read through."""
  with called_by(eqn):
    return evaluate(callee(eqn.params), operands)


@rule_for("custom_jvp_call", "custom_vjp_call")
def custom(eqn: Any, *operands: Any) -> Any:
  """Read through: the function, never its derivative rule."""
  with called_by(eqn):
    return evaluate(callee(eqn.params), operands)


@rule_for("cond")
def cond(eqn: Any, which: Any, *operands: Any) -> Any:
  """The branch that a constant chooses; of all of them the right one if that is traced."""
  if isinstance(which, Node):
    msg = f"Which branch of a cond is taken{source_line(eqn)} depends on the input: between two "
    msg = f"{msg}branches the result may jump. Only a constant may choose."
    raise CertifyError(msg)
  branches = eqn.params["branches"]
  if not isinstance(which, Tracer):
    return evaluate(branches[min(max(int(which), 0), len(branches) - 1)], operands)
  index = jnp.clip(which.astype(jnp.int32), 0, len(branches) - 1)
  results = [evaluate(branch, operands) for branch in branches]
  return [_chosen(v.aval, index, x) for v, *x in zip(eqn.outvars, *results, strict=True)]


def _chosen(aval: Any, index: Any, cases: list[Any]) -> Any:
  """The case at a traced index: linear in all of them, with 1 for it and 0 for the others."""
  if not any(isinstance(x, Node) for x in cases):
    return lax.select_n(index, *(jnp.asarray(x, aval.dtype) for x in cases))

  def choose(index: Any, *values: Any) -> Any:
    dtype = jnp.result_type(*values)
    return lax.select_n(index, *(jnp.asarray(x, dtype) for x in values))

  node = merged(aval, functools.partial(choose, index), cases)
  is_taken = lambda i: lambda: jnp.where(index == i, 1.0, 0.0)
  norms = tuple(is_taken(i) for i, x in enumerate(cases) if isinstance(x, Node))
  merged_part: Any = node.part
  part = dataclasses.replace(merged_part, norms=norms)
  recipe = Recipe("select_n", {}, (index, *cases), choose)
  return Node(aval, part, node.parents, recipe=recipe)
