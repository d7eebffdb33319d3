"""Where gathers and scatters read and write, when that is not where they promise."""

from __future__ import annotations

from typing import Any

from jax import lax


def without_promises(name: str, params: dict[str, Any]) -> dict[str, Any]:
  """Of places that are not as was promised: what XLA does then, which its transpose shall undo."""
  modes = lax.GatherScatterMode
  if "mode" not in params or "unique_indices" not in params:
    return params
  params = {**params, "unique_indices": False, "indices_are_sorted": False}
  if params["mode"] is modes.PROMISE_IN_BOUNDS:
    params["mode"] = modes.CLIP if name == "gather" else modes.FILL_OR_DROP
  return params
