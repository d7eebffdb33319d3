"""The demo, end to end and in its parts."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax
from lipjax.__main__ import main
from lipjax.commands import demo_attack, demo_data, demo_model, demo_report, demo_train
from lipjax.commands.demo_evaluate import RADII
from lipjax.commands.demo_methods import METHODS
from lipjax.commands.demo_statistics import Estimate, difference, estimate, verdict

BY_NAME = {method.name: method for method in METHODS}


@pytest.fixture(scope="module")
def digits():
  pytest.importorskip("sklearn")
  return demo_data.load()


@pytest.mark.thorough
def test_quick_run_prints_a_table_and_writes_a_figure_and_numbers(tmp_path, capsys):
  pytest.importorskip("sklearn")
  pytest.importorskip("matplotlib")
  out = tmp_path / "new" / "folder"
  assert main(["demo", "--quick", "--out", str(out)]) == 0

  printed = capsys.readouterr().out
  for words in ("none", "L2", "spectral", "product", "not a certificate", "validation"):
    assert words in printed
  assert str(out / "demo.png") in printed.replace("\n", "")
  assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
  numbers = json.loads((out / "demo.json").read_text())
  assert list(numbers["methods"]) == ["none", "L2", "spectral"]
  for method in numbers["methods"].values():
    assert np.shape(method["attack_by_radius"]) == (len(RADII), 2)
    assert method["attack_by_radius"][0] == method["clean"]
    assert min(method["clean"]) > 0.85
    assert np.shape(method["sigma_history"]["hidden_1/kernel"]) == (2, 100)
    assert method["mean_and_standard_error"]["product_of_sigma"][0] > 1
  assert len(numbers["comparisons"]) == 3


def test_without_a_command_the_help_is_printed(capsys):
  assert main([]) == 0
  assert "demo" in capsys.readouterr().out


def test_help_of_the_command_names_its_options(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["demo", "--help"])
  assert stop.value.code == 0
  printed = capsys.readouterr().out
  for option in ("--quick", "--seeds", "--steps", "--out"):
    assert option in printed


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["demo", "--seeds", "1"], "'1' is not an integer of at least 2"),
    (["demo", "--steps", "0"], "'0' is not an integer of at least 1"),
    (["demo", "--steps", "many"], "'many' is not an integer"),
    (["demo", "--fast"], "--fast"),
    (["dance"], "dance"),
  ],
)
def test_a_wrong_argument_is_an_error_that_names_it(arguments, says, capsys):
  with pytest.raises(SystemExit) as stop:
    main(arguments)
  assert stop.value.code == 2
  assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sklearn", "matplotlib"])
def test_a_missing_extra_says_what_to_install(name, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(SystemExit, match=r'pip install "lipjax\[demo\]"'):
    main(["demo", "--out", str(tmp_path / "out")])
  assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path):
  pytest.importorskip("sklearn")
  (tmp_path / "file").write_text("")
  with pytest.raises(SystemExit, match="--out"):
    main(["demo", "--out", str(tmp_path / "file")])


def test_the_parts_of_the_data_are_in_range_and_disjoint(digits):
  assert [len(part.labels) for part in digits] == [1000, 398, 398]
  images = np.concatenate([part.images for part in digits])
  assert images.min() == 0
  assert images.max() == 1
  # The digits hold no two equal images.
  assert len(np.unique(images, axis=0)) == len(images)


def test_the_attack_of_radius_zero_is_the_clean_accuracy_and_larger_is_stronger(digits):
  params = demo_model.init_params(jax.random.key(0))
  accuracies = jax.jit(demo_attack.accuracies)
  both = [accuracies(params, digits.test, radius) for radius in (0.0, 0.3, 0.6)]
  clean, attacked = np.array(both).T
  assert (clean == jnp.mean(demo_attack.is_correct(params, digits.test))).all()
  assert attacked[0] == clean[0]
  assert attacked[0] >= attacked[1] >= attacked[2]


def test_differences_up_to_two_standard_errors_are_within_noise():
  delta = difference(Estimate(5.0, 0.3), Estimate(4.0, 0.4))
  assert delta == pytest.approx((1.0, 0.5))
  assert verdict(delta) == "within noise"
  assert verdict(Estimate(1.01, 0.5)) == "higher"
  assert verdict(Estimate(-1.01, 0.5)) == "lower"
  assert estimate(np.array([1.0, 3.0]), 100) == pytest.approx((200, 100))


def test_a_strength_at_the_edge_of_the_grid_is_said_to_be():
  Fake = type("Fake", (), {"method": METHODS[1]})
  result = Fake()
  result.strength, result.validation = 0.01, {0.003: 0.5, 0.01: 0.7, 0.03: 0.6}
  assert "edge" not in demo_report.choice(result)
  result.strength = 0.03
  assert "edge" in demo_report.choice(result)


def _tracking_deviation(method, strength, data):
  """Largest deviation of tracked norms from a float64 SVD, updates 50 to 59."""
  key = jax.random.key(0)
  network = demo_train.start(method.transformation, demo_model.init_params(key))
  step = jax.jit(functools.partial(demo_train.train_step, method.transformation, strength, key))
  worst = 0.0
  for t in range(60):
    before = network.params
    network = step(network, data, t)
    if t < 50:
      continue
    for path, sigma in lipjax.read_spectral_norms(network.opt_state).items():
      weight = np.asarray(before[path.split("/")[0]]["kernel"][...], np.float64)
      exact = np.linalg.svd(weight, compute_uv=False)[0]
      worst = max(worst, abs(float(sigma) / exact - 1))
  return worst


@pytest.mark.parametrize(
  ("name", "strength"), [("none", 0.0), ("L2", 0.01), ("spectral", 0.03), ("spectral", 0.1)]
)
def test_norms_are_tracked_within_a_percent(name, strength, digits):
  assert _tracking_deviation(BY_NAME[name], strength, digits.train) < 0.01
