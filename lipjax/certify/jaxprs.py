"""Jaxprs of any JAX from 0.10 on: what differs between versions is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def opened(jaxpr: Any) -> Any:
  """The jaxpr inside a closed one; JAX 0.12 has one class for both."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def consts(jaxpr: Any) -> Sequence[Any]:
  """The constants of a closed jaxpr; none of an open one."""
  return getattr(jaxpr, "consts", None) or ()


def scan_counts(eqn: Any) -> tuple[int, int]:
  """How many operands of a scan are constants, and how many are carried.

  JAX 0.12 has other parameters than 0.10; shapes say it in every version, as those of rows
  lose an axis in the body.
  """
  body = opened(eqn.params["jaxpr"])
  n_rows = _n_differing(eqn.invars, body.invars)
  n_carry = len(eqn.outvars) - _n_differing(eqn.outvars, body.outvars)
  return len(eqn.invars) - n_rows - n_carry, n_carry


def _n_differing(one: Sequence[Any], other: Sequence[Any]) -> int:
  return sum(a.aval.shape != b.aval.shape for a, b in zip(one, other, strict=True))


def callee(params: dict[str, Any]) -> Any:
  """The function that a call calls: of jit, remat, and functions with derivative rules."""
  names = ("call_jaxpr", "fun_jaxpr", "jaxpr")
  return next(params[name] for name in names if name in params)


def source_line(eqn: Any) -> str:
  """Where in the user's code an equation was written, as ``" (file.py:12)"``, or nothing."""
  try:
    from jax._src import source_info_util

    return f" ({source_info_util.summarize(eqn.source_info)})"
  except (ImportError, AttributeError):
    return ""
