"""The table of the page `ellipsoid`, from what ``python -m benchmarks.speed certify`` measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "certify.json"
HEAD = "network", "slope found", "norms", "default", "tight", "LipSDP-Neuron", "others"


def table(path: Path = RESULTS) -> str:
  """A row for each network, and for each ball of it: the slope found, and upper bounds."""
  (result,) = json.loads(path.read_text())["results"]
  lines = [HEAD, ("---",) * len(HEAD)]
  for name, row in result["rows"].items():
    lines += [*_everywhere(name, row), *_on_balls(name, row)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _everywhere(name: str, row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
  if "upper" not in row:  # not Lipschitz on all inputs
    return
  bounds = (row[key]["upper"] for key in ("upper_fast", "upper", "upper_tight"))
  yield _cells(name, row["values"]["lower"], bounds, row.get("peers", {}), None)


def _on_balls(name: str, row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
  lirpa = row.get("auto_LiRPA", {}).get("on_balls", {})
  for radius, found in row.get("on_balls", {}).items():
    by_norms = min(x for key, x in found["default"]["engines"].items() if key != "ellipsoid")
    bounds = by_norms, *(found.get(effort, {}).get("upper") for effort in ("default", "tight"))
    peers = row.get("peers_on_balls", {}).get(radius, {})
    yield _cells(f"{name}, radius {radius}", found["lower"], bounds, peers, lirpa.get(radius))


def _cells(
  name: str, lower: float, bounds: Iterable[float | None], peers: dict[str, Any], lirpa: Any
) -> tuple[str, ...]:
  solved = [x["bound"] for key, x in peers.items() if "LipSDP" in key and "bound" in x]
  tried = any(key.startswith("LipSDP-Neuron") for key in peers)
  beside = {"ECLipsE-Fast": peers.get("ECLipsE-Fast"), "auto_LiRPA": lirpa}
  others = [f"{peer} {_text(found['bound'])}" for peer, found in beside.items() if found]
  sdp = _text(min(solved)) if solved else "too large" * tried
  return name, _text(lower), *map(_text, bounds), sdp, ", ".join(others)


def _text(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"
