"""The benchmark of whole networks: its networks, and a run of it on a small one."""

import importlib
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if not (Path(__file__).parents[2] / "benchmarks" / "speed").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def load(name):
  return importlib.import_module(f"benchmarks.speed.{name}")


def matrices(*widths):
  rng = np.random.default_rng(0)
  shapes = itertools.pairwise(widths)
  return [rng.standard_normal((n, m)).astype(np.float32) for m, n in shapes]


def small():
  network = load("certify_networks").chain(matrices(4, 6, 3))
  return network._replace(radii=(0.1,), search={"n_starts": 2, "n_ascent_steps": 16})


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
  certify, tasks = load("certify"), load("certify_tasks")
  monkeypatch.setattr(certify, "NETWORKS", {"small": small})
  monkeypatch.setattr(tasks, "SECONDS", 0.01)
  monkeypatch.setattr(
    certify, "_in_process", lambda name, task, _: tasks.TASKS[task](certify.NETWORKS[name]())
  )
  result = json.loads(json.dumps(certify.run()))
  certify.show(result)
  row = result["rows"]["small"]
  values, upper = row["values"], row["upper"]
  assert set(values["engines"]) == {"product", "ellipsoid"}
  assert 0 < values["lower"] <= values["upper"] == min(values["engines"].values())
  product = row["peers"]["product of norms, SVD in float64"]["bound"]
  assert values["engines"]["product"] == pytest.approx(product, rel=1e-3)
  assert values["lower"] <= row["upper_fast"]["upper"] <= product * (1 + 1e-3)
  assert values["lower"] <= row["upper_tight"]["upper"] <= upper["upper"] * (1 + 1e-4)
  assert upper["ratio"] == pytest.approx(values["ratio"], rel=1e-4)
  assert 0 < row["pairs"]["over_root_two"]["largest"] <= 1 + 1e-5
  assert {"first_s", "median_ms", "peak_mb", "over_forward_mb"} <= set(upper)
  ball = row["on_balls"]["0.1"]
  assert 0 < ball["lower"] <= ball["tight"]["upper"] <= upper["upper"] * (1 + 1e-4)
  assert set(row["peers_on_balls"]) == {"0.1"}
  with pytest.raises(ValueError, match=r"No networks \['none'\]"):
    certify.run(["none"])


def test_eclipse_is_between_the_norm_of_the_product_and_the_product_of_norms():
  peers, weights = load("certify_peers"), matrices(5, 7, 6, 3)
  found = peers.eclipse_fast(weights)
  # With slopes in [0, 1] the linear chain is among the functions.
  linear = np.linalg.norm(weights[2] @ weights[1] @ weights[0], 2)
  assert linear <= found <= peers.norm_product(weights)
  # Of one layer it is the norm.
  assert peers.eclipse_fast(weights[:1]) == pytest.approx(peers.norm_product(weights[:1]))


@pytest.mark.parametrize("package", ["cvxopt", "clarabel"])
def test_lipsdp_is_at_most_eclipse_and_no_less_than_a_slope(package):
  pytest.importorskip(package)
  peers, weights = load("certify_peers"), matrices(8, 4, 3, 2)
  slopes = peers.relu_slopes(weights)
  everywhere = bound_by(package, weights, slopes)
  assert everywhere <= peers.eclipse_fast(weights) * (1 + 1e-5)
  # As it would be where the first layer is on and the second off but for one neuron.
  stable = [slopes[0]._replace(lower=np.ones(4)), slopes[1]._replace(upper=np.eye(3)[0])]
  linear = np.linalg.norm(weights[2][:, :1] @ weights[1][:1] @ weights[0], 2)
  assert bound_by(package, weights, stable) == pytest.approx(linear, rel=1e-4)
  assert linear <= everywhere * (1 + 1e-5)


def bound_by(package, weights, slopes):
  return load("certify_peers").lipsdp_rows(weights, slopes)[f"LipSDP-Neuron by {package}"]["bound"]


def test_solvers_that_are_not_there_or_too_slow_are_left_out(monkeypatch):
  peers, weights = load("certify_peers"), matrices(4, 6, 3)
  monkeypatch.setattr(peers, "SOLVERS", (peers.Solver("no_such_solver", None, 6),))
  rows = peers.lipsdp_rows(weights, peers.relu_slopes(weights))
  assert rows == {
    "LipSDP-Neuron by no_such_solver": {"left_out": "no_such_solver is not installed"}
  }
  rows = peers.lipsdp_rows(matrices(4, 7, 3), peers.relu_slopes(matrices(4, 7, 3)))
  assert "7 neurons" in rows["LipSDP-Neuron by no_such_solver"]["left_out"]


def test_slopes_on_a_ball_are_those_of_neurons_that_do_not_switch():
  tasks, networks = load("certify_tasks"), load("certify_networks")
  params = [(jnp.eye(3), jnp.asarray([1.0, -1.0, 0.05])), (jnp.ones((2, 3)), jnp.zeros(2))]
  network = networks.Network(networks.relu_mlp, params, jnp.zeros((1, 3)))
  (slopes,) = tasks.slopes_on_ball(network, 0.1)
  np.testing.assert_array_equal(slopes.lower, [1, 0, 0])
  np.testing.assert_array_equal(slopes.upper, [1, 0, 1])


def test_auto_lirpa_is_asked_in_another_python(tmp_path):
  tasks = load("certify_tasks")
  python = tmp_path / "python"
  python.write_text("#!/bin/sh\ntest -f $2 && echo '{\"on_balls\": {}}'\n")
  python.chmod(0o755)
  assert tasks.auto_lirpa(small(), str(python)) == {"on_balls": {}}
  assert tasks.auto_lirpa(small()._replace(radii=()), str(python)) == {}


def test_a_network_that_is_lipschitz_on_balls_alone_has_no_other_bounds():
  certify, tasks = load("certify"), load("certify_tasks").TASKS
  network = small()._replace(is_lipschitz=False, matrices=None, radii=())
  found = {task: {} if task in ("forward", "batch") else tasks[task](network) for task in tasks}
  row = certify._row("transformer block", found)
  assert row == {"values": {"parameters": 42}}
  certify.show({"rows": {"transformer block": row}, "note": ""})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_digits_are_learned_the_same_way_every_time(name, monkeypatch):
  pytest.importorskip("sklearn")
  from lipjax.commands import demo_data

  digits, test = load("certify_digits"), demo_data.load().test
  monkeypatch.setattr(digits, "STEPS", 40)
  network, again = (getattr(digits, name)() for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, network.params, again.params)
  images = test.images.reshape((-1, *network.x.shape[1:]))
  labels = network.apply(network.params, images).argmax(axis=1)
  assert float((labels == test.labels).mean()) > 0.7
