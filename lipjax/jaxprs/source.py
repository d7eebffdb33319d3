"""Where in the user's code an equation was written."""

from __future__ import annotations

import os
from typing import Any

#: Where frames are not the user's.
_OURS = tuple(
  os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), name) + os.sep
  for name in ("certify", "jaxprs")
)


def source_line(eqn: Any) -> str:
  """Where an equation, or a call that it was written out of, is; or nothing.

  As ``" (file.py:12 (function))"``. Functions of JAX hold no line of the user's: then it is
  that of the call.
  """
  lines = map(_user_line, (eqn, *getattr(eqn, "calls", ())))
  return next((f" ({line})" for line in lines if line), "")


def _user_line(eqn: Any) -> str:
  try:
    from jax._src import source_info_util

    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
  except (ImportError, AttributeError):
    return ""
  # Functions that are traced here again say nothing of the user's.
  frame = next((x for x in frames if not x.file_name.startswith(_OURS)), None)
  return "" if frame is None else f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
