"""Jaxprs of any JAX from 0.10 on: what differs between versions is here."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence
from typing import Any

#: The calls that are being read, innermost first.
_CALLERS: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("callers", default=())
#: Where frames are not the user's.
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


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


@contextlib.contextmanager
def called_by(eqn: Any) -> Iterator[None]:
  """While a call's function is read: equations of JAX's own functions have the call's line."""
  token = _CALLERS.set((eqn, *_CALLERS.get()))
  try:
    yield
  finally:
    _CALLERS.reset(token)


def source_line(eqn: Any) -> str:
  """Where in the user's code an equation, or a call it is in, was written; or nothing.

  As ``" (file.py:12 (function))"``.
  """
  lines = map(_user_line, (eqn, *_CALLERS.get()))
  return next((f" ({line})" for line in lines if line), "")


def _user_line(eqn: Any) -> str:
  try:
    from jax._src import source_info_util

    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
  except (ImportError, AttributeError):
    return ""
  # Functions that are traced here again say nothing of the user's.
  frame = next((x for x in frames if not x.file_name.startswith(_HERE)), None)
  return "" if frame is None else f"{frame.file_name}:{frame.start_line} ({frame.function_name})"


def traceback_of(eqn: Any) -> Any:
  """JAX's record of the line that `source_line` says, for `written_at`; None of none."""
  found = next((x for x in (eqn, *_CALLERS.get()) if _user_line(x)), None)
  return None if found is None else found.source_info.traceback


def written_at(traceback: Any) -> contextlib.AbstractContextManager[Any]:
  """While an equation is traced again: what is traced has the first one's line."""
  try:
    from jax._src import source_info_util

    return source_info_util.user_context(traceback)
  except (ImportError, AttributeError):
    return contextlib.nullcontext()
