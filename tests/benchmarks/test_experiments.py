"""The experiments of benchmarks/, end to end with ``--quick``, and their parts."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax

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


@pytest.mark.slow
def test_claims_quick(tmp_path, capsys):
  pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
  numbers = run_quick(tmp_path, "claims")
  assert [len(task["methods"]) for task in numbers["tasks"]] == [6, 6, 6, 7, 7, 7]
  for task in numbers["tasks"]:
    for method in task["methods"].values():
      clean = max(method["validation"], key=lambda x: x["clean"])
      assert method["chosen"]["clean"]["rate"] == clean["rate"]
      assert method["chosen"]["clean"]["strength"] == clean["strength"]
      assert np.shape(method["chosen"]["robust"]["seeds"]["test"]) == (2,)
  for followed in numbers["tracker"]:
    for layer in followed["by_layer"].values():
      assert np.max(np.abs(layer["subspace"])) < 0.02
  out = capsys.readouterr().out
  assert all(sentences for sentences in numbers["findings"].values())
  assert "is more accurate than none, L2, adversarial is" in out.replace("\n", " ")


@pytest.mark.slow
def test_transformer_quick(tmp_path, capsys):
  numbers = run_quick(tmp_path, "transformer")
  assert len(numbers["methods"]) == 4
  for method in numbers["methods"]:
    (best,) = method["curve"]
    assert {x: best[x] for x in method["chosen"]} == method["chosen"]
    assert np.isfinite([best["log_product"], best["log_slope"]]).all()
    assert method["surviving_rates"] == method["rates"] == [best["rate"]]
  runs = tmp_path / "transformer_runs.jsonl"
  before = runs.read_text()
  assert len(before.splitlines()) == 2 * len(numbers["methods"])
  run_quick(tmp_path, "transformer")
  assert runs.read_text() == before
  assert "rates within 0.2 nats" in capsys.readouterr().out


@pytest.mark.thorough
def test_plasticity_quick(tmp_path, capsys):
  pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
  numbers = run_quick(tmp_path, "plasticity")
  assert list(numbers["sequences"]) == ["random labels", "permuted pixels"]
  for sequence in numbers["sequences"].values():
    assert len(sequence["methods"]) == 6
    for method in sequence["methods"].values():
      best = max(method["validation"], key=lambda x: x["accuracy"])
      assert (method["rate"], method["strength"]) == (best["rate"], best["strength"])
      accuracy = np.array(method["seeds"]["accuracy"])
      assert accuracy.shape == (4, 6)
      last = 100 * np.mean(accuracy[:, -5:])
      assert method["mean_and_standard_error"]["last"][0] == pytest.approx(last)
      assert method["mean_and_standard_error"]["stable_rank"][0] > 1
  assert "power penalty is more accurate than" in capsys.readouterr().out.replace("\n", " ")


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


def claims_data(n=20):
  data = load("supervised_data")
  images = jax.random.uniform(jax.random.key(0), (n, 64))
  split = data.Split(images, jnp.arange(n) % 10)
  return data.Data("digits", split, split, split, (0.0, 0.6), 0.6)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_share_of_wrong_labels_is_the_one_asked_for(share):
  tasks, split = load("claims_tasks"), claims_data(50).train
  noisy = tasks.with_wrong_labels(split, share)
  assert int(jnp.sum(noisy.labels != split.labels)) == round(share * 50)
  assert int(noisy.labels.min()) >= 0
  assert int(noisy.labels.max()) <= 9
  np.testing.assert_array_equal(tasks.with_wrong_labels(split, share).labels, noisy.labels)


def test_an_epoch_shows_every_image_once_in_as_many_epochs_for_every_batch():
  tasks = load("claims_tasks")
  rows = tasks.rows_of_epoch(jax.random.key(0), 20, 6)
  assert rows.shape == (3, 6)
  assert len(np.unique(rows)) == 18
  (whole,) = tasks.rows_of_epoch(jax.random.key(1), 20, 20)
  np.testing.assert_array_equal(np.sort(whole), np.arange(20))
  small, large, wrong = tasks.tasks("MLP", 1000)
  assert (small.batch, large.batch, wrong.batch) == (64, 1000, 64)
  assert (small.n_steps(1000, 1500), large.n_steps(1000, 1500)) == (1500, 100)
  assert large.n_steps(1000, 1) == 1


def test_noise_is_the_same_every_time_and_none_without_deviation():
  measure, (mlp, _) = load("claims_measure"), load("claims_networks").networks(claims_data())
  params, split = mlp.init(jax.random.key(0)), claims_data().test
  split = split._replace(labels=jnp.argmax(mlp.logits(params, split.images), axis=-1))
  first, again = (measure.noisy_accuracy(mlp, params, split, 1.0) for _ in range(2))
  assert first == again < 1
  assert measure.noisy_accuracy(mlp, params, split, 0.0) == 1


def test_layouts_are_the_true_maps_and_flax_layout_the_flattened_kernels():
  networks = load("claims_networks")
  cnn = networks.cnn()
  params, x = cnn.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 4, 32))
  operator, kernel = cnn.layout["conv_2/kernel"], params["conv_2"]["kernel"]
  assert operator.input_shape(kernel.shape) == x.shape
  expected = networks.convolve(x[None], kernel, 2)[0]
  np.testing.assert_allclose(operator.apply(kernel, x), expected, atol=1e-5)
  flattened = np.asarray(kernel).reshape(-1, 32)
  reshaped = lipjax.spectral_norms({"conv_2": params["conv_2"]})["conv_2/kernel"]
  assert float(reshaped) == pytest.approx(np.linalg.norm(flattened, 2), rel=1e-5)


def test_norms_that_others_are_compared_with_are_those_of_the_matrices():
  networks, tracker = load("claims_networks"), load("claims_tracker")
  mlp = networks.mlp(64)
  params = mlp.init(jax.random.key(0))
  found = tracker.exact_norms(mlp, params)
  for layer, leaves in params.items():
    norm = np.linalg.norm(np.asarray(leaves["kernel"], np.float64), 2)
    assert found[f"{layer}/kernel"] == pytest.approx(norm, rel=1e-12)


def test_a_claim_is_shown_only_where_every_difference_is_more_than_noise():
  findings, tasks = load("claims_findings"), load("claims_tasks")
  measured = load("claims_measure").Measured
  of = lambda test: measured(*(np.array(x) for x in (np.ones(3), test, test, test, np.ones(3))))
  ours, far, near = of([0.9, 0.91, 0.92]), of([0.8, 0.81, 0.82]), of([0.9, 0.9, 0.91])
  task = tasks.Task("MLP", 1000, 0.0)
  say = lambda **theirs: findings._against(task, ours, theirs)
  assert say(a=far, b=far).endswith(
    "a, b is shown: by more than noise it is so against 2 of 2 (a, b)."
  )
  assert say(a=far, b=near).endswith(
    "is not shown: by more than noise it is so against 1 of 2 (a)."
  )
  assert say(a=near).endswith("is not shown: by more than noise it is so against 0 of 1.")
  highest = findings._highest(task, "test", {"ours": ours, "far": far, "near": near})
  assert highest.endswith("with ours; within noise of it: near.")


def test_parts_of_the_text_share_no_paragraph_and_windows_are_of_one_part():
  text = load("transformer_text").load()
  as_words = lambda part: "".join(text.characters[i] for i in part)
  parts = [as_words(part).split("\n\n") for part in text[:3]]
  # What is cut at an end is no paragraph.
  whole = [set(paragraphs[1:-1]) for paragraphs in parts]
  assert not whole[0] & whole[1]
  assert not (whole[0] | whole[1]) & whole[2]
  found = load("transformer_text").windows(text.test, 5, 7)
  assert found.shape == (5, 7)
  np.testing.assert_array_equal(found[-1], text.test[-7:])


def transformer_measured(**values):
  of = load("transformer_measure").Measured
  return of(**dict.fromkeys(of._fields, 1.0) | values)


def test_runs_are_kept_with_their_settings_and_without_infinities(tmp_path):
  runs = load("transformer_runs")
  file = runs.RunsFile(tmp_path / "runs.jsonl", {"steps": 5})
  assert file.read() == {}
  run = runs.Run("Muon", "ball", 0.5, 0.01, 0)
  measured = transformer_measured(validation=float("inf"))
  file.add(run, measured)
  assert "Infinity" not in file.path.read_text()
  assert file.read() == {run: measured}
  assert runs.RunsFile(file.path, {"steps": 6}).read() == {}


def test_rates_survive_within_the_margin_at_the_best_strength():
  choose, runs = load("transformer_choose"), load("transformer_runs")
  method = load("transformer_methods").Method("Muon", "ball", (1.0, 2.0), (0.1, 0.4, 1.6))
  assert [run.rate for run in choose.with_middle_rates({}, [method])] == [0.4, 0.4]
  losses = {(1.0, 0.1): 2.15, (1.0, 0.4): 2.0, (1.0, 1.6): np.inf, (2.0, 0.1): 2.1}
  found = {
    runs.Run("Muon", "ball", strength, rate, 0): transformer_measured(
      validation=x, log_product=strength
    )
    for (strength, rate), x in losses.items()
  }
  other_seed = runs.Run("Muon", "ball", 1.0, 0.4, 1)
  one = choose.result(found | {other_seed: transformer_measured(validation=1.5)}, method)
  assert one.best == other_seed._replace(seed=0)
  assert [x.validation for x in one.seeds] == [2.0, 1.5]
  assert [(run.strength, run.rate) for run in one.curve] == [(1.0, 0.4), (2.0, 0.1)]
  assert [run.rate for run in one.surviving] == [0.1, 0.4]
  assert choose.at_most(found, "Muon", "ball", 2.0).validation == 2.0
  assert choose.at_most(found, "Muon", "ball", 0.5) is None
  assert choose.result({}, method) is None
  assert [run[2:] for run in choose.with_other_rates(found, [method])] == [
    (1.0, 0.1, 0), (1.0, 0.4, 0), (1.0, 1.6, 0)
  ]  # fmt: skip
  assert choose.with_other_seeds(found, [method], 2) == [other_seed]


@pytest.mark.thorough
def test_what_holds_norms_holds_all_matrices_but_the_tables():
  methods, network = load("transformer_methods"), load("transformer_network")
  small = network.Transformer(11, length=6, width=8, heads=2, layers=1)
  window = jnp.zeros((1, 6), int)
  params = small.init(jax.random.key(0), window)["params"]
  slopes = jax.grad(lambda params: network.loss(small, params, window))(params)
  for optimizer in methods.RATES:
    tx = methods.transformation(optimizer, methods.SPHERE, params, 0.5, lambda count: 0.01)
    updates, _ = tx.update(slopes, tx.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    norms = lipjax.spectral_norms(after, layout_overrides=network.NOT_TABLES)
    assert len(norms) == 7
    assert norms["head/kernel"] == pytest.approx(0.5 * np.sqrt(11 / 8), rel=0.02)
    assert norms["blocks_0/down/kernel"] == pytest.approx(0.25, rel=0.02)


def test_tasks_of_a_sequence_change_labels_or_pixels_alone():
  tasks, data = load("plasticity_tasks"), claims_data(30)
  images = tasks.Images(data.train, data.test)
  labels, pixels = (dataclasses.replace(x, n_images=20) for x in tasks.SETTINGS)
  of = lambda setting, index: tasks.task(setting, jax.random.key(0), index, images)
  first, second = of(labels, 0), of(labels, 1)
  assert first.test is first.train
  np.testing.assert_array_equal(first.train.images, second.train.images)
  assert np.any(first.train.labels != second.train.labels)
  first, second = of(pixels, 0), of(pixels, 1)
  np.testing.assert_array_equal(first.train.labels, second.train.labels)
  assert np.any(first.train.images != second.train.images)
  # `claims_data` has the same images in all its parts.
  np.testing.assert_array_equal(first.test.labels, data.test.labels)
  rows = {tuple(x) for x in np.asarray(first.test.images)}
  assert {tuple(x) for x in np.asarray(first.train.images)} <= rows


def test_batches_of_a_round_are_epochs_one_after_another():
  tasks = load("plasticity_tasks")
  n = 2 * tasks.BATCH
  split = tasks.Split(jnp.arange(n)[:, None], jnp.arange(n))
  some = tasks.batches(jax.random.key(0), split, 5)
  assert some.images.shape == (5, tasks.BATCH, 1)
  for begin in (0, 2):
    np.testing.assert_array_equal(np.sort(np.ravel(some.labels[begin : begin + 2])), split.labels)


def test_strengths_are_tried_beyond_the_edge_while_the_best_is_there():
  choose = load("plasticity_choose")
  of = lambda **scores: {
    choose.Choice(1e-3, 10.0 ** int(name[1:]) * 1e-5): x for name, x in scores.items()
  }
  assert choose.beyond(of(s1=0.3, s2=0.2, s3=0.1)) == (1e-5,)
  assert choose.beyond(of(s1=0.1, s2=0.2, s3=0.3)) == (0.1,)
  assert choose.beyond(of(s1=0.1, s2=0.3, s3=0.2)) == ()
  assert choose.beyond(of(s1=0.1)) == choose.around(of(s1=0.1)) == ()
  assert choose.around(of(s1=0.1, s2=0.3, s3=0.2)) == (3e-4, 3e-3)
  assert choose.beyond(of(**{f"s{i}": i / 10 for i in range(choose.MOST)})) == ()


def test_methods_of_plasticity_leave_biases_alone():
  methods, choice = load("plasticity_methods"), load("claims_train").Choice(1e-3, 0.1)
  params = {"dense": {"kernel": jnp.eye(3, 4), "bias": jnp.ones(4)}}
  none = jax.tree.map(jnp.zeros_like, params)
  moved = jax.tree.map(lambda w: w + 1, params)
  for name, method in methods.METHODS.items():
    optimizer = method.optimizer(choice)
    updates, _ = optimizer.update(none, optimizer.init(params), moved)
    assert not np.any(updates["dense"]["bias"])
    assert np.any(updates["dense"]["kernel"]) == (name not in (methods.NONE, methods.NEW))
