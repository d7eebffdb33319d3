"""How much work a bound is worth, in a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Effort = Literal["fast", "default", "tight"]
#: Graphs with more values at a time have no ellipsoid.
VALUES_UP_TO = 2048
#: Operations by default: about a second of a laptop's. Without a step there are multipliers to
#: start from, which are worth some more.
OPERATIONS, WITHOUT_STEP = 5e10, 2e11
#: Of a step of gradient descent, in cubes of a layer's width.
OPERATIONS_A_STEP = 40


def check_effort(effort: str) -> None:
  """Raises a `ValueError` for another word."""
  if effort not in ("fast", "default", "tight"):
    msg = f"effort is {effort!r}; expected 'fast', 'default' or 'tight'."
    raise ValueError(msg)


def is_worth(effort: Effort, widths: Sequence[int]) -> bool:
  """Whether there is time for an ellipsoid of layers of such widths."""
  is_affordable = effort == "tight" or (effort == "default" and _cost(widths) <= WITHOUT_STEP)
  return is_affordable and max(widths) <= VALUES_UP_TO


def steps_for(effort: Effort, widths: Sequence[int]) -> int:
  """Steps of gradient descent on an ellipsoid."""
  return 300 if effort == "tight" else min(int(OPERATIONS / _cost(widths)), 20)


def _cost(widths: Sequence[int]) -> float:
  return OPERATIONS_A_STEP * sum(width**3 for width in widths)
