"""What ``claims`` prints and writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from benchmarks.experiments import report
from benchmarks.experiments.claims_choose import CLEAN, ROBUST, SCORES, Result
from benchmarks.experiments.claims_findings import Results, Tracked
from benchmarks.experiments.claims_measure import NOISE, NOISE_DRAWS
from benchmarks.experiments.claims_networks import networks
from benchmarks.experiments.claims_tasks import Task
from benchmarks.experiments.claims_tracker import CHECK
from benchmarks.experiments.claims_train import MOMENTUM
from benchmarks.experiments.options import Budget
from benchmarks.experiments.supervised_data import Data
from benchmarks.experiments.supervised_network import ATTACK_STEPS

#: What is printed of the networks that were chosen by each score.
COLUMNS = {CLEAN: ("train", "test", "gap"), ROBUST: ("test", "attacked", "noisy", "product")}


def tables(data: Data, results: Results, tracked: Tracked) -> Group:
  """Of each task by each score, and of the norms that were followed."""
  shown = [_table(data, task, found, score) for task, found in results.items() for score in SCORES]
  return Group(*shown, _tracker_table(tracked))


def _table(data: Data, task: Task, found: Mapping[str, Result], score: str) -> Table:
  headers = {
    "train": "train\n%",
    "test": "test\n%",
    "gap": "gap",
    "attacked": f"attack {data.radius:g}\n%",
    "noisy": f"noise {NOISE[data.name]:g}\n%",
    "product": "product\nof σ",
  }
  shown = COLUMNS[score]
  rows = {}
  for name, result in found.items():
    means, choice = result.measured[score].estimates(), result.chosen[score]
    cells = (report.cell(means[measure], 1) for measure in shown)
    rows[name] = [f"{choice.rate:g}", f"{choice.strength:g}", *cells]
  title = f"{data.name}, {task.title}, chosen by {score} score"
  return report.table(title, ("rate", "strength", *(headers[x] for x in shown)), rows)


def _tracker_table(tracked: Tracked) -> Table:
  rows = {
    f"{network}, {method}, {layer}": [f"{100 * x:.3f}" for x in _median_and_worst(by_tracker)]
    for (network, method), errors in tracked.items()
    for layer, by_tracker in errors.by_layer.items()
  }
  trackers = next(iter(next(iter(tracked.values())).by_layer.values()))
  headers = [f"{name}\n{what}, %" for name in trackers for what in ("median", "worst")]
  return report.table("Share of the exact norm that followed norms miss", headers, rows)


def _median_and_worst(by_tracker: Mapping[str, Any]) -> list[float]:
  return [float(of(x)) for x in by_tracker.values() for of in (np.median, np.max)]


def notes(data: Data, budget: Budget, results: Results) -> list[str]:
  """What the numbers are and are not."""
  n_train, n_test = len(data.train.labels), len(data.test.labels)
  small, large, _ = list(results)[:3]
  n_epochs = small.n_steps(n_train, budget.steps) // (n_train // small.batch)
  n_candidates = {len(found.validation) for ways in results.values() for found in ways.values()}
  shapes = "; ".join(f"{network.name}: {network.sizes}" for network in networks(data))
  return [
    f"{shapes}; ReLU. {n_train} training images, SGD with momentum {MOMENTUM:g} and a cosine"
    f" schedule, {n_epochs} epochs for every batch size: {small.n_steps(n_train, budget.steps)}"
    f" steps of {small.batch}, {large.n_steps(n_train, budget.steps)} of {large.batch}."
    f" {budget.seeds} seeds of initialization and order, shared by all rows; wrong labels are the"
    f" same ones for all.",
    f"Learning rate ({', '.join(map(str, small.rates))} at batch {small.batch},"
    f" {', '.join(map(str, large.rates))} at {large.batch}) and strength are chosen together, for"
    f" every method and task anew, on {len(data.validation.labels)} validation images with right"
    f" labels, first seed: {max(n_candidates)} candidates each, {min(n_candidates)} without a"
    f" strength; the lowest of equally good ones. By {CLEAN} score: accuracy. By {ROBUST} score:"
    " the mean of accuracy and accuracy under attack.",
    "Chosen at the edge of the strengths that were tried, so that more or less of it might do"
    f" better, by {CLEAN} score: {_at_the_edge(results, CLEAN)}; by {ROBUST} score:"
    f" {_at_the_edge(results, ROBUST)}.",
    f"{n_test} test images. A difference of at most 2 combined standard errors is called within"
    f" noise. With {budget.seeds} seeds a larger one comes up by chance in about one comparison of"
    " ten, and many are made here; the test images stay the same.",
    f"Attack: {ATTACK_STEPS} steps of PGD in an l2 ball, pixels in [0, 1], from the image itself;"
    f" it finds some adversarial images, not all. Noise: Gaussian, {NOISE_DRAWS} draws. Product of"
    " σ: of the maps that the kernels are, convolutions at their input's size.",
    "Adversarial training: the mean loss of each image and of it moved along its normalized"
    " gradient; the strength is how far. Gradient penalty: on the squared norm of each image's"
    " loss gradient. Norms capped: spectral normalization where a norm is above the cap. Reshaped:"
    " decay of the norms of the flattened kernels, as in the papers.",
    f"Norms followed: one training at the larger rate, with the strength chosen by {ROBUST} score,"
    f" compared with an SVD in float64 after every {CHECK} steps. One vector: one step of power"
    " iteration an update. Subspace: lipjax's default. Both start at the exact vectors.",
    f"One data set, {data.name}, and tiny networks without normalization layers: Yoshida & Miyato"
    " (2017) have VGG, NIN and DenseNets on all of CIFAR.",
  ]


def _at_the_edge(results: Results, score: str) -> str:
  found = [
    f"{name} {result.chosen[score].strength:g} ({task.title})"
    for task, ways in results.items()
    for name, result in ways.items()
    if result.chosen[score].strength in _edges(result)
  ]
  return ", ".join(found) or "none"


def _edges(result: Result) -> set[float]:
  strengths = {choice.strength for choice in result.validation}
  return {min(strengths), max(strengths)} if len(strengths) > 1 else set()


def contents(
  data: Data, budget: Budget, quick: bool, results: Results, tracked: Tracked
) -> dict[str, Any]:
  """What is written, beside texts."""
  settings = {"data": data.name, "training_images": len(data.train.labels), **budget._asdict()}
  settings |= {"quick": quick, "radius": data.radius, "noise": NOISE[data.name]}
  tasks = [
    task._asdict()
    | {"title": task.title, "methods": {name: _numbers(x) for name, x in found.items()}}
    for task, found in results.items()
  ]
  followed = [
    {"network": network, "method": method, **errors._asdict()}
    for (network, method), errors in tracked.items()
  ]
  return {"settings": settings, "tasks": tasks, "tracker": followed}


def _numbers(result: Result) -> dict[str, Any]:
  validation = [
    {**choice._asdict(), "clean": clean, "attacked": attacked}
    for choice, (clean, attacked) in result.validation.items()
  ]
  chosen = {
    score: {
      **result.chosen[score]._asdict(),
      "mean_and_standard_error": measured.estimates(),
      "seeds": measured._asdict(),
    }
    for score, measured in result.measured.items()
  }
  return {"validation": validation, "chosen": chosen}
