"""What cannot be bounded says so, and says what to write instead."""

from __future__ import annotations

from typing import Any


class CertifyError(ValueError):
  """A function of which no Lipschitz bound is known."""


def source_line(eqn: Any) -> str:
  """Where in the user's code an equation was written, as ``" (file.py:12)"``, or nothing."""
  try:
    from jax._src import source_info_util

    return f" ({source_info_util.summarize(eqn.source_info)})"
  except (ImportError, AttributeError):
    return ""
