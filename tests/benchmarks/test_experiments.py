"""The experiments of benchmarks/, end to end with ``--quick``, and their parts."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("matplotlib", reason="the experiments draw figures")
if not (ROOT / "benchmarks" / "experiments").is_dir():
  pytest.skip("a tree without benchmarks/, such as an sdist", allow_module_level=True)


def load(name):
  return importlib.import_module(f"benchmarks.experiments.{name}")


def run_quick(out, name):
  load("__main__").main([name, "--quick", "--out", str(out)])
  assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  numbers = json.loads((out / f"{name}.json").read_text())
  assert numbers["environment"]["jax"] == jax.__version__
  return numbers


@pytest.mark.slow
def test_wasserstein_quick(tmp_path, capsys):
  numbers = run_quick(tmp_path, "wasserstein")
  assert len(numbers["methods"]) == 8
  for method in numbers["methods"].values():
    assert np.shape(method["gradient_far"]) == (2,)
    # A sampled gradient is at most the product of the norms, whatever the training.
    largest = np.maximum(method["gradient_segment"], method["gradient_far"])
    assert np.all(largest <= np.multiply(method["product_of_sigma"], 1 + 1e-5))
  assert "lower bound of the Lipschitz" in capsys.readouterr().out


@pytest.mark.slow
def test_supervised_quick(tmp_path, capsys):
  pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
  numbers = run_quick(tmp_path, "supervised")
  plain, *capped = numbers["networks"]
  assert plain["name"] == "none"
  assert numbers["chosen_cap"] in (1.0, 1.4)
  for network in capped:
    assert np.max(network["sigma"]["hidden_2"]) < np.min(plain["sigma"]["hidden_2"])
    assert np.all(np.diff(network["accuracy_by_radius"], axis=0) <= 0.02)
  assert "minus none, in points" in capsys.readouterr().out


@pytest.mark.slow
def test_certified_quick(tmp_path, capsys):
  pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
  numbers = run_quick(tmp_path, "certified")
  for method in numbers["methods"].values():
    certified, attacked = (np.asarray(method[name]) for name in ("certified", "attacked"))
    assert certified.shape == (3, 2)
    assert np.all(certified <= attacked)
    assert np.all(attacked <= method["clean"])
    assert method["strength"] == float(max(method["validation"], key=method["validation"].get))
  assert "pairs of classes, ellipsoids" in capsys.readouterr().out


def test_critics_are_timed_against_the_first():
  methods = load("wasserstein_methods")
  rows = load("wasserstein_measure").milliseconds(
    (methods.UNCONSTRAINED, methods.METHODS[0]), blocks=1
  )
  assert list(rows) == ["no constraint", "clip 0.1"]
  assert all(row["median_ms"] > 0 and row["compile_s"] > 0 for row in rows.values())


def test_classifiers_are_timed_with_a_cap_and_without():
  images, labels = jnp.full((20, 64), 0.5), jnp.zeros(20, int)
  data = load("supervised_data")
  split = data.Split(images, labels)
  whole = data.Data("tiny", split, split, split, (0.0, 1.0), 1.0)
  rows = load("supervised_evaluate").milliseconds(whole, 1.0, blocks=1)
  assert list(rows) == ["none", "capped"]


def test_maxmin_keeps_length_and_the_gap_of_the_norm_is_the_distance():
  critic = load("wasserstein_critic")
  x = jax.random.normal(jax.random.key(0), (5, 64))
  y = critic.maxmin(x)
  np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
  inner, outer = critic.draw(jax.random.key(1), 100)
  distance = jnp.linalg.norm(outer, axis=-1).mean() - jnp.linalg.norm(inner, axis=-1).mean()
  assert float(distance) == pytest.approx(critic.DISTANCE, rel=1e-5)


def test_a_seed_or_less_is_refused(capsys):
  with pytest.raises(SystemExit):
    load("__main__").main(["supervised", "--seeds", "1"])
  assert "at least 2" in capsys.readouterr().err


def write_cifar(folder, cifar):
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (cifar.ROWS, cifar.ROW_BYTES), np.uint8)
  rows[:, 0] %= 10
  for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
    (folder / name).write_bytes(rows.tobytes())
  return rows


def test_cifar_is_read_as_channels_last(tmp_path):
  cifar = load("cifar")
  rows = write_cifar(tmp_path, cifar)
  images, labels, test_images, test_labels = cifar.load(tmp_path)
  assert images.shape == (50_000, 32, 32, 3)
  assert images.dtype == test_images.dtype == np.uint8
  assert labels.shape == (50_000,)
  row = rows[7]
  assert test_labels[7] == row[0]
  # Pixel (row 3, column 5) of channel 2.
  assert test_images[7, 3, 5, 2] == row[1 + 2 * 1024 + 3 * 32 + 5]


def test_cifar_files_that_are_wrong_are_named(tmp_path):
  cifar = load("cifar")
  with pytest.raises(ValueError, match=r"no .*data_batch_1\.bin"):
    cifar.load(tmp_path)
  write_cifar(tmp_path, cifar)
  (tmp_path / "test_batch.bin").write_bytes(b"short")
  with pytest.raises(ValueError, match=r"test_batch\.bin has 5 bytes; expected 30730000"):
    cifar.load(tmp_path)
  (tmp_path / "test_batch.bin").write_bytes(b"\xff" * cifar.ROWS * cifar.ROW_BYTES)
  with pytest.raises(ValueError, match="label 255"):
    cifar.load(tmp_path)
