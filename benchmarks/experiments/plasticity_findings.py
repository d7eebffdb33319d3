"""What follows from the numbers of ``plasticity``, in sentences no stronger than they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.experiments import report, verdicts
from benchmarks.experiments.plasticity_choose import ENDS, Result
from benchmarks.experiments.plasticity_methods import DECOUPLED, L2, NONE, POWER, SPECTRAL
from lipjax.commands.demo_statistics import verdict

#: By setting and method.
Results = Mapping[str, Mapping[str, Result]]


def findings(results: Results) -> dict[str, list[str]]:
  """Sentences for each setting."""
  return {setting: list(_sentences(setting, found)) for setting, found in results.items()}


def _sentences(setting: str, found: Mapping[str, Result]) -> Iterable[str]:
  numbers = {name: result.estimates() for name, result in found.items()}
  changes = {name: of["change"] for name, of in numbers.items()}
  parts = (f"{name} {x.mean:+.1f} ± {x.error:.1f} ({verdict(x)})" for name, x in changes.items())
  yield f"{setting}, last {ENDS} tasks minus first {ENDS}, in points: {', '.join(parts)}."
  last = {name: of["last"] for name, of in numbers.items()}
  for ours in (POWER, SPECTRAL):
    others = (name for name in last if name not in (ours, POWER))
    parts = (report.comparison(name, last[ours], last[name]) for name in others)
    yield f"{setting}, last {ENDS} tasks, {ours} minus another: {', '.join(parts)}."
  title = f"{setting}, last {ENDS} tasks"
  theirs = {name: last[name] for name in (NONE, L2, DECOUPLED) if name in last}
  yield verdicts.against(title, POWER, last[POWER], theirs)
  for what in ("last", "all"):
    means = {name: of[what] for name, of in numbers.items()}
    of = f"last {ENDS} tasks" if what == "last" else "all tasks"
    yield verdicts.highest(f"{setting}: highest mean accuracy, {of},", means)
