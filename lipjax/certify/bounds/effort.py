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
#: With ``effort="tight"``, for steps. Images that would take more than the second have none.
TIGHT, TIGHT_ON_IMAGES = 2e13, 5e12
#: Numbers of a layer's matrix, for all frequencies.
NUMBERS_UP_TO = 2**26
#: Of a step of gradient descent, in cubes of a layer's width.
OPERATIONS_A_STEP = 40


def check_effort(effort: str) -> None:
  """Raises a `ValueError` for another word."""
  if effort not in ("fast", "default", "tight"):
    msg = f"effort is {effort!r}; expected 'fast', 'default' or 'tight'."
    raise ValueError(msg)


def is_worth(effort: Effort, widths: Sequence[tuple[int, int]]) -> bool:
  """Whether there is time for an ellipsoid of layers of so many blocks of such widths."""
  is_small = all(n <= VALUES_UP_TO and count * n**2 <= NUMBERS_UP_TO for count, n in widths)
  if effort == "tight" and not _are_images(widths):
    return is_small
  most = {"fast": 0.0, "default": WITHOUT_STEP, "tight": TIGHT_ON_IMAGES}[effort]
  return is_small and _cost(widths) <= most


def steps_for(effort: Effort, widths: Sequence[tuple[int, int]]) -> int:
  """Steps of gradient descent on an ellipsoid."""
  operations, most = (TIGHT, 300) if effort == "tight" else (OPERATIONS, 20)
  return min(int(operations / _cost(widths)), most)


def _are_images(widths: Sequence[tuple[int, int]]) -> bool:
  return any(count > 1 for count, _ in widths)


def _cost(widths: Sequence[tuple[int, int]]) -> float:
  return OPERATIONS_A_STEP * sum(count * n**3 for count, n in widths)
