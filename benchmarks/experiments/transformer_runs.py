"""Runs of ``transformer``, kept in a file line by line, so that they can be continued."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.experiments.transformer_measure import Measured

#: What a network has with a loss that is no number.
DIVERGED = math.inf


class Run(NamedTuple):
  """Which network."""

  optimizer: str
  constraint: str
  strength: float
  rate: float
  seed: int


Found = dict[Run, Measured]


class RunsFile:
  """The runs of a file that have the same settings; others in it are left alone.

  Args:
    path: of JSON lines.
    settings: what all of them share.
  """

  def __init__(self, path: Path, settings: Mapping[str, Any]):
    self.path, self.settings = path, dict(settings)

  def read(self) -> Found:
    """Those that are there."""
    if not self.path.exists():
      return {}
    lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
    return {
      Run(**line["run"]): Measured(**{k: _number(x) for k, x in line["measured"].items()})
      for line in lines
      if line["settings"] == self.settings
    }

  def add(self, run: Run, measured: Measured) -> None:
    """One more, at the end."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: _kept(x) for k, x in measured._asdict().items()}
    line = {"settings": self.settings, "run": run._asdict(), "measured": kept}
    with self.path.open("a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")


def _number(kept: float | None) -> float:
  return DIVERGED if kept is None else kept


def _kept(number: float) -> float | None:
  """JSON has no infinity."""
  return number if math.isfinite(number) else None
