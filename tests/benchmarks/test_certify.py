"""The benchmark of whole networks: its networks, and a run of it on a small one."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

if not (Path(__file__).parents[2] / "benchmarks" / "speed").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def load(name):
  return importlib.import_module(f"benchmarks.speed.{name}")


def small():
  networks = load("certify_networks")
  rng = np.random.default_rng(0)
  shapes = ((6, 4), (3, 6))
  return networks.chain([rng.standard_normal(shape).astype(np.float32) for shape in shapes])


@pytest.mark.slow
def test_both_resnets_have_the_same_weights_but_for_their_order():
  networks = load("certify_networks").NETWORKS
  shapes = []
  for name in ("ResNet-18 linen", "ResNet-18 nnx"):
    network = networks[name]()
    assert jax.eval_shape(network.apply, network.params, network.x).shape == (1, 10)
    shapes.append(sorted(x.shape for x in jax.tree.leaves(network.params)))
    scales = [x for x in jax.tree.leaves(network.params) if x.ndim == 1]
    # Of each batch norm all but the shift, and no dense bias, differ from their start.
    assert sum(float(np.std(x)) > 0.1 for x in scales) == 60
  assert shapes[0] == shapes[1]


def test_a_task_that_takes_too_long_is_stopped_and_said_so(monkeypatch):
  certify = load("certify")
  stopped = {task: certify._in_process("CNN 28×28", task, 0) for task in certify.TASKS}
  assert all(found == {"stopped_after_s": 0} for found in stopped.values())
  rows = {"CNN": certify._row("CNN 28×28", stopped)}
  certify.show({"rows": rows, "note": ""})


@pytest.mark.slow
def test_tasks_of_a_small_network(monkeypatch):
  certify = load("certify")
  monkeypatch.setattr(certify, "NETWORKS", {"small": small})
  monkeypatch.setattr(certify, "SECONDS", 0.01)
  monkeypatch.setattr(
    certify, "_in_process", lambda name, task, _: certify.TASKS[task](certify.NETWORKS[name]())
  )
  result = json.loads(json.dumps(certify.run()))
  certify.show(result)
  row = result["rows"]["small"]
  values = row["values"]
  assert set(values["engines"]) == {"product", "ellipsoid"}
  assert 0 < values["lower"] <= values["upper"] == min(values["engines"].values())
  assert values["engines"]["product"] == pytest.approx(
    row["peers"]["product of norms, SVD in float64"], rel=1e-3
  )
  assert 0 < row["pairs"]["over_root_two"]["largest"] <= 1 + 1e-5
  assert {"first_s", "median_ms", "peak_mb", "over_forward_mb"} <= set(row["upper"])
  with pytest.raises(ValueError, match=r"No networks \['none'\]"):
    certify.run(["none"])
