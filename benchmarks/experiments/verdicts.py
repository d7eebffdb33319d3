"""Sentences on which of several means are higher by more than noise."""

from __future__ import annotations

from collections.abc import Mapping

from lipjax.commands.demo_statistics import Estimate, difference, verdict


def against(title: str, name: str, ours: Estimate, theirs: Mapping[str, Estimate]) -> str:
  """That ours is more accurate is shown only where it is so against every other."""
  higher = [other for other, found in theirs.items() if _verdict(ours, found) == "higher"]
  shown = "shown" if len(higher) == len(theirs) else "not shown"
  names = f" ({', '.join(higher)})" if higher else ""
  return (
    f"{title}: that {name} is more accurate than {', '.join(theirs)} is {shown}:"
    f" by more than noise it is so against {len(higher)} of {len(theirs)}{names}."
  )


def highest(title: str, found: Mapping[str, Estimate]) -> str:
  """Which mean is the highest, and which others are within noise of it."""
  first = max(found, key=lambda name: found[name].mean)
  ties = [
    name
    for name, other in found.items()
    if name != first and _verdict(found[first], other) == "within noise"
  ]
  beside = f"; within noise of it: {', '.join(ties)}" if ties else "; all others are lower"
  return f"{title} with {first}{beside}."


def _verdict(ours: Estimate, theirs: Estimate) -> str:
  return verdict(difference(ours, theirs))
