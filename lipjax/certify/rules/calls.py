"""Functions that are called: read through, never by their name or their derivative rule."""

from __future__ import annotations

from typing import Any

from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node
from lipjax.certify.interpreter import evaluate, rule_for
from lipjax.certify.jaxprs import callee, source_line


@rule_for("jit", "closed_call", "checkpoint")
def call(eqn: Any, *operands: Any) -> Any:
  """Read through."""
  return evaluate(callee(eqn.params), operands)


@rule_for("custom_jvp_call", "custom_vjp_call")
def custom(eqn: Any, *operands: Any) -> Any:
  """Read through: the function, never its derivative rule."""
  return evaluate(callee(eqn.params), operands)


@rule_for("cond")
def cond(eqn: Any, which: Any, *operands: Any) -> Any:
  """The branch that a constant chooses."""

  if isinstance(which, Node | Tracer):
    msg = f"Which branch of a cond is taken{source_line(eqn)} must be a constant known now."
    raise CertifyError(msg)
  branches = eqn.params["branches"]
  return evaluate(branches[min(max(int(which), 0), len(branches) - 1)], operands)
