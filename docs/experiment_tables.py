"""The tables and sentences of the page `experiments`, from what the experiments wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_table import markdown_table

from lipjax.commands.demo_statistics import estimate

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "experiments"
#: Runs of an experiment, by what is printed of them.
RUNS = {"digits": RESULTS, "CIFAR-10": RESULTS / "cifar10"}
#: Of experiments with data of their own.
TITLES = {"wasserstein": "Spheres", "transformer": "Text"}
#: Until then lipjax followed norms by one vector.
SUBSPACE_SINCE = "2026-11-28"
#: Columns of the tables of ``claims``: names of the measures in the files, and on the page.
GENERALIZATION = {"test": "test", "gap": "gap"}
WRONG_LABELS = {"train": "training", "test": "test"}
ROBUSTNESS = {"test": "test", "attacked": "attack", "noisy": "noise", "product": "product of σ"}
CRITICS = {
  "dual": "estimate of W₁",
  "gradient_segment": "steepest between samples",
  "gradient_far": "steepest far away",
  "product_of_sigma": "product of σ",
}
PLASTICITY = {
  "first": "first tasks",
  "last": "last tasks",
  "all": "all tasks",
  "sum_of_squares": "sum of squares",
  "average_sigma": "average σ",
  "stable_rank": "stable rank",
}
GANS = {"sliced_distance": "sliced W₁", "product_of_sigma": "product of σ"}
#: Columns of the table of ``transformer``: digits after the point, and names on the page.
TRANSFORMERS = {
  "test": (3, "test loss"),
  "log_product": (1, "log₁₀ product of σ"),
  "log_slope": (2, "log₁₀ slope"),
}


def runs(name: str) -> dict[str, dict[str, Any]]:
  """What is there of an experiment, by its data."""
  files = {data: folder / f"{name}.json" for data, folder in RUNS.items()}
  return {data: json.loads(file.read_text()) for data, file in files.items() if file.exists()}


def machine(name: str) -> str:
  """When each run was, on what, and how many seeds it has."""
  lines = []
  for data, run in runs(name).items():
    x = run["environment"]
    title = TITLES.get(name, data)
    older = ", as lipjax still followed one vector" if x["date"] < SUBSPACE_SINCE else ""
    lines.append(
      f"{title}: {x['date']}, {x['processor']}, {x['cores']} cores, JAX {x['jax']},"
      f" {run['settings']['seeds']} seeds{older}."
    )
  return "\n".join(lines) + "\n"


def findings(name: str, claim: str | None = None) -> str:
  """The sentences that an experiment drew from its numbers, as a list."""
  lines, several = [], len(runs(name)) > 1
  for data, run in runs(name).items():
    sentences = run["findings"] if claim is None else run["findings"][claim]
    lines += [f"- {data}, {x}" if several else f"- {x}" for x in sentences]
  return "\n".join(lines) + "\n"


def notes(name: str, data: str) -> str:
  """What the numbers of a run are and are not, as a list."""
  return "".join(f"- {note}\n" for note in runs(name)[data]["notes"])


def large_batches() -> str:
  """Test accuracy and gap with small and with large batches."""
  rows = []
  for data, small, large, _ in _tasks():
    pairs = (_cells(task, "clean", GENERALIZATION) for task in (small, large))
    head = [f"batch {task['batch']}, {name}" for task in (small, large) for name in ("test", "gap")]
    rows.append((data, small["network"], head, [a + b for a, b in zip(*pairs, strict=True)], small))
  return "\n".join(_methods(*row) for row in rows)


def largest_rates() -> str:
  """How many methods got the largest learning rate that was tried with large batches."""
  lines = []
  for data, _, task, _ in _tasks():
    methods = task["methods"].values()
    largest = max(x["rate"] for x in next(iter(methods))["validation"])
    n = sum(method["chosen"]["clean"]["rate"] == largest for method in methods)
    lines.append(
      f"- {data}, {task['title']}: {n} of {len(methods)} methods have the largest learning rate"
      f" that was tried, {largest:g}."
    )
  return "\n".join(lines) + "\n"


def wrong_labels() -> str:
  """Share of the labels that were trained on, and test accuracy."""
  return _one_task("clean", WRONG_LABELS, 2)


def robustness() -> str:
  """Clean, attacked and noisy accuracy, with strengths that were chosen for it."""
  return _one_task("robust", ROBUSTNESS, 0)


def right_norm() -> str:
  """Decay of true norms and of reshaped ones, in all tasks that have both."""
  rows = []
  for data, *tasks in _tasks():
    for task in tasks:
      for name in ("spectral decay", "spectral, reshaped"):
        if "spectral, reshaped" in task["methods"]:
          clean, robust = (task["methods"][name]["chosen"][x] for x in ("clean", "robust"))
          cells = _estimates(clean, GENERALIZATION), _estimates(robust, ROBUSTNESS)
          rows.append([f"{data}, {task['title']}, {name}", *cells[0], *cells[1]])
  head = "", "test", "gap", *(f"robust: {name}" for name in ROBUSTNESS.values())
  return markdown_table(head, rows)


def following() -> str:
  """Shares of exact norms that followed ones miss: median and worst over a training."""
  rows = []
  for data, run in runs("claims").items():
    for followed in run["tracker"]:
      for layer, by_tracker in followed["by_layer"].items():
        name = f"{data}, {followed['network']}, {followed['method']}, {layer}"
        rows.append(
          [name, *(x for shares in by_tracker.values() for x in _median_and_worst(shares))]
        )
  trackers = next(iter(run["tracker"][0]["by_layer"].values()))
  return markdown_table(("", *(f"{x}, {of}" for x in trackers for of in ("median", "worst"))), rows)


def supervised() -> str:
  """Of every cap, and without one: accuracy and the product of norms."""
  rows = []
  for data, run in runs("supervised").items():
    for network in run["networks"]:
      chosen = " (chosen)" if network["name"] == f"cap {run['chosen_cap']:g}" else ""
      found = network["mean_and_standard_error"]
      keys = "clean_percent", "attack_percent", "product_of_sigma"
      rows.append([f"{data}, {network['name']}{chosen}", *(_estimate(found[key]) for key in keys)])
  return markdown_table(("", "clean", "attack", "product of σ"), rows)


def critics() -> str:
  """Of the critics between two spheres: estimates and slopes."""
  return _of_methods("wasserstein", CRITICS)


def gans() -> str:
  """Of the generators: how far their samples are from images; and of the critics, norms."""
  return _of_methods("wgan", GANS)


def certified() -> str:
  """Clean, certified and attacked accuracy at each radius, of the runs that are there."""
  tables = []
  for data, run in runs("certified").items():
    names = (
      f"{what} {radius:.3g}" for radius in run["radii"] for what in ("certified", "attacked")
    )
    rows = [
      [f"{data}, {name}", *map(_percent, _in_turn(method))]
      for name, method in run["methods"].items()
    ]
    tables.append(markdown_table(("", "clean", *names), rows))
  return "\n".join(tables) or "No run of it is kept yet.\n"


def transformer() -> str:
  """Of the chosen transformers of each optimizer and constraint: loss, norms, rates."""
  rows = []
  for method in _transformer()["methods"]:
    found, chosen = method["mean_and_standard_error"], method["chosen"]
    setting = f"{chosen['strength']:g}, {chosen['rate']:g}"
    cells = (_estimate(found[key], digits) for key, (digits, _) in TRANSFORMERS.items())
    rows.append([method["name"], setting, *cells, method["survivors"]])
  names = (name for _, name in TRANSFORMERS.values())
  return markdown_table(("", "strength, rate", *names, "rates that survive"), rows)


def transformer_at_most() -> str:
  """Test losses of the best transformers up to a product of norms."""
  tables = []
  for optimizer, found in _transformer()["at_most"].items():
    rows = [
      [name, *("–" if x is None else f"{x:.3f}" for x in tests)]
      for name, tests in found["test"].items()
    ]
    limits = (f"up to 10^{limit:.1f}" for limit in found["log_products"])
    tables.append(markdown_table((optimizer, *limits), rows))
  return "\n".join(tables)


def _transformer() -> dict[str, Any]:
  return runs("transformer")["digits"]


def plasticity() -> str:
  """Accuracy over sequences of tasks, and what the weights are like after the last."""
  tables = []
  for data, run in runs("plasticity").items():
    for setting, sequence in run["sequences"].items():
      rows = [
        [name, f"{method['rate']:g}", f"{method['strength']:g}", *_estimates(method, PLASTICITY)]
        for name, method in sequence["methods"].items()
      ]
      head = f"{data}, {setting}: {sequence['measured']}", "rate", "strength"
      tables.append(markdown_table((*head, *PLASTICITY.values()), rows))
  return "\n".join(tables)


def _in_turn(method: Mapping[str, Any]) -> list[list[float]]:
  pairs = zip(method["certified"], method["attacked"], strict=True)
  return [method["clean"], *(shares for pair in pairs for shares in pair)]


def _percent(shares: list[float]) -> str:
  return _estimate(estimate(shares, 100))


def _tasks() -> Iterable[tuple[Any, ...]]:
  """Of each run and network: its data, and the tasks with small and large batches, wrong labels."""
  for data, run in runs("claims").items():
    for three in zip(*[iter(run["tasks"])] * 3, strict=True):
      yield data, *three


def _one_task(score: str, measures: Mapping[str, str], place: int) -> str:
  tables = []
  for data, *tasks in _tasks():
    task = tasks[place]
    rows = _cells(task, score, measures)
    tables.append(_methods(data, task["network"], list(measures.values()), rows, task))
  return "\n".join(tables)


def _cells(task: Mapping[str, Any], score: str, measures: Iterable[str]) -> list[list[str]]:
  return [_estimates(method["chosen"][score], measures) for method in task["methods"].values()]


def _estimates(found: Mapping[str, Any], measures: Iterable[str], digits: int = 1) -> list[str]:
  return [_estimate(found["mean_and_standard_error"][measure], digits) for measure in measures]


def _methods(data: str, network: str, head: list[str], rows: list[list[str]], task: Any) -> str:
  named = ([name, *cells] for name, cells in zip(task["methods"], rows, strict=True))
  return markdown_table((f"{data}, {network}", *head), named)


def _of_methods(name: str, measures: Mapping[str, str]) -> str:
  several = len(runs(name)) > 1
  rows = [
    [f"{data}, {method}" if several else method, *_estimates(found, measures, 3)]
    for data, run in runs(name).items()
    for method, found in run["methods"].items()
  ]
  return markdown_table(("", *measures.values()), rows)


def _median_and_worst(shares: list[float]) -> list[str]:
  return [f"{100 * x:.3f} %" for x in (statistics.median(shares), max(shares))]


def _estimate(value: Sequence[float], digits: int = 1) -> str:
  mean, error = value
  return f"{mean:.{digits}f} ± {error:.{digits}f}"
