"""The report of a checkpoint: right numbers, one clear line for what is wrong, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training.train_state import TrainState

from lipjax.__main__ import main
from lipjax.commands import report_rows


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    x = nn.LayerNorm()(x.reshape((x.shape[0], -1)))
    return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def variables():
  return Net().init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


@pytest.fixture
def saved(variables, tmp_path):
  path = tmp_path / "net.msgpack"
  path.write_bytes(serialization.to_bytes(variables))
  return path


def report(capsys, *args):
  code = main(["report", *map(str, args)])
  out, err = capsys.readouterr()
  return code, out, err


def as_json(capsys, *args):
  code, out, _ = report(capsys, *args, "--json")
  assert code == 0
  return json.loads(out)


def test_norms_are_those_of_the_layers(saved, variables, capsys):
  found = as_json(capsys, saved)
  assert (found["format"], found["layout"], found["not_told"]) == ("Flax msgpack", "flax", {})
  rows = {row["path"]: row for row in found["operators"]}
  assert set(rows) == {
    "params/Conv_0/kernel", "params/Dense_0/kernel", "params/LayerNorm_0/scale"
  }  # fmt: skip
  kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
  values, row = np.linalg.svd(kernel, compute_uv=False), rows["params/Dense_0/kernel"]
  assert row["lower"] <= values[0] * (1 + 1e-6)
  assert values[0] <= row["upper"] <= values[0] * 1.001
  assert row["frobenius"] == pytest.approx(np.linalg.norm(kernel), rel=1e-5)
  # From the certified lower end, which leaves room for rounding.
  assert row["stable_rank"] == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-4)
  assert rows["params/LayerNorm_0/scale"]["lower"] == 1.0
  norms = [row["lower"] for row in found["operators"]]
  assert norms == sorted(norms, reverse=True)
  assert found["totals"]["operators"] == 3


def test_lines_for_other_programs(saved, capsys):
  code, out, err = report(capsys, saved, "--top", 2)
  lines = [line.split("\t") for line in out.splitlines()]
  assert code == 0
  assert lines[0][0] == "path"
  assert len(lines) == 3
  assert {len(line) for line in lines} == {7}
  assert "3 operators in 3 leaves" in err
  assert "NOT that of the convolution" in err


def test_a_table_on_a_terminal(saved, capsys, monkeypatch):
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("COLUMNS", "200")
  _, out, _ = report(capsys, saved)
  assert "─────" in out
  assert "3 operators in 3 leaves" in out


def test_match_and_override(saved, capsys):
  override = "params/Conv_0/kernel=Convolution((4, 4))"
  (row,) = as_json(capsys, saved, "--match", "Conv", "--override", override)["operators"]
  assert row["operator"].startswith("Convolution")
  assert row["shape"] == [3, 3, 1, 4]
  paths = [
    row["path"] for row in as_json(capsys, saved, "--override", ".*Dense.*=None")["operators"]
  ]
  assert "params/Dense_0/kernel" not in paths
  unused = as_json(capsys, saved, "--override", "nobody=None")["not_told"]
  assert "no path is matched" in unused["nobody"]


@pytest.mark.parametrize("written", ["k=Dense(", "k=print(1)", "k", "(=None", "k=Dense(x)", "k=1"])
def test_overrides_that_are_none(saved, written, capsys):
  with pytest.raises(SystemExit) as caught:
    main(["report", str(saved), "--override", written])
  assert caught.value.code == 2
  assert "expected REGEX=OPERATOR" in capsys.readouterr().err


@pytest.mark.parametrize(
  "args",
  [
    ["--top", "0"],
    ["--match", "("],
    ["--layout", "x"],
    ["--what"],
    ["--figure", "a.png", "--diff", "b.npz"],
  ],
)
def test_wrong_arguments(saved, args, capsys):
  with pytest.raises(SystemExit) as caught:
    main(["report", str(saved), *args])
  assert caught.value.code == 2
  assert "error:" in capsys.readouterr().err


def test_what_cannot_be_told_is_listed(tmp_path, capsys):
  path = tmp_path / "net.npz"
  np.savez(path, **{"block/kernel": np.ones((2, 3, 4)), "out/kernel": np.ones((2, 2))})
  code, out, err = report(capsys, path)
  assert code == 0
  assert out.splitlines()[1].startswith("out/kernel")
  assert "--override 'block/kernel'=… with one of: ReshapedKernel(" in err


def test_only_what_cannot_be_told(tmp_path, capsys):
  path = tmp_path / "net.npz"
  np.savez(path, **{"block/kernel": np.ones((2, 3, 4))})
  code, out, err = report(capsys, path)
  assert (code, out) == (1, "")
  assert err.startswith(f"lipjax report: {path}: no linear maps among 1 arrays. ")
  assert len(err.splitlines()) == 1


def test_a_missing_file(tmp_path, capsys):
  code, out, err = report(capsys, tmp_path / "nothing")
  assert (code, out) == (1, "")
  assert err == f"lipjax report: {tmp_path / 'nothing'} does not exist.\n"


def test_what_is_not_finite_comes_first(tmp_path, capsys):
  path = tmp_path / "net.npz"
  bad = np.ones((3, 3))
  bad[0, 0] = np.nan
  np.savez(path, **{"a/kernel": np.ones((2, 2)), "b/kernel": bad})
  _, out, _ = report(capsys, path)
  assert out.splitlines()[1].split("\t")[:4] == [
    "b/kernel",
    "Dense((0,), (1,))",
    "3×3",
    "not finite",
  ]
  found = as_json(capsys, path)
  assert found["operators"][0]["lower"] == "nan"
  assert found["totals"]["largest"] == pytest.approx(2, rel=1e-9)
  assert out.splitlines()[2].split("\t")[-1] == "100%"


def test_float64_is_not_rounded(tmp_path, capsys):
  path, w = tmp_path / "net.npz", np.random.default_rng(0).standard_normal((20, 20))
  np.savez(path, **{"a/kernel": w, "a/scale": np.array([1 + 1e-12])})
  matrix, scale = as_json(capsys, path)["operators"]
  assert matrix["lower"] <= np.linalg.norm(w, 2) <= matrix["upper"] <= matrix["lower"] * (1 + 1e-9)
  assert scale["lower"] == scale["upper"] == 1 + 1e-12
  assert jnp.zeros(()).dtype == jnp.float32 or jax.config.read("jax_enable_x64")


def test_what_is_no_real_number_is_listed(tmp_path, capsys):
  path = tmp_path / "net.npz"
  np.savez(
    path,
    **{
      "a/kernel": np.ones((2, 2)),
      "b/kernel": np.asarray(jnp.ones((2, 2), jnp.bfloat16)),  # of which NumPy keeps two bytes
      "c/kernel": np.ones((2, 2), np.complex64),
      "step": np.int32(3),
    },
  )
  not_told = as_json(capsys, path)["not_told"]
  assert set(not_told) == {"b/kernel", "c/kernel"}
  assert "bfloat16" in not_told["b/kernel"]
  assert "complex64" in not_told["c/kernel"]


def test_moments_of_an_optimizer_are_left_out(tmp_path, variables, capsys):
  state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(1e-3))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", {"params": state.params, "opt_state": state.opt_state})
  code, out, err = report(capsys, tmp_path / "state")
  assert code == 0
  assert len(out.splitlines()) == 4
  assert "leaves outside of params (--all)" in err
  assert len(as_json(capsys, tmp_path / "state", "--all")["operators"]) == 9


def test_two_checkpoints(saved, variables, tmp_path, capsys):
  later = tmp_path / "later.msgpack"
  change = lambda path, x: 2 * x if "Dense" in jax.tree_util.keystr(path) else x
  later.write_bytes(serialization.to_bytes(jax.tree_util.tree_map_with_path(change, variables)))
  code, out, _ = report(capsys, saved, "--diff", later)
  lines = [line.split("\t") for line in out.splitlines()]
  assert code == 0
  assert lines[1][0] == "params/Dense_0/kernel"
  assert [line[-1] for line in lines[1:]] == ["2", "1", "1"]
  rows = as_json(capsys, saved, "--diff", later)["rows"]
  assert rows[0]["after"]["lower"] == pytest.approx(2 * rows[0]["before"]["lower"], rel=1e-5)


def test_torch_names(tmp_path, capsys):
  numpy = pytest.importorskip("safetensors.numpy")
  arrays = {
    "layer1.0.conv1.weight": np.ones((4, 2, 3, 3), np.float32),
    "layer1.0.bn1.weight": np.ones(4, np.float32),
    "layer1.0.bn1.running_var": np.ones(4, np.float32),
    "fc.weight": np.ones((3, 4), np.float32),
    "fc.bias": np.ones(3, np.float32),
  }
  numpy.save_file(arrays, tmp_path / "model.safetensors")
  found = as_json(capsys, tmp_path / "model.safetensors")
  assert (found["layout"], found["not_told"]) == ("torch", {})
  norms = {row["path"]: row["lower"] for row in found["operators"]}
  assert norms["fc/weight"] == pytest.approx(12**0.5, rel=1e-5)
  assert norms["layer1/0/conv1/weight"] == pytest.approx(72**0.5, rel=1e-5)
  assert norms["layer1/0/bn1/weight"] == 1


@pytest.mark.thorough
def test_products_of_lora_pairs_and_of_heads(tmp_path, capsys):
  rng = np.random.default_rng(0)
  leaves = {
    "0/lora_A/weight": rng.standard_normal((2, 6)).astype(np.float32),
    "0/lora_B/weight": rng.standard_normal((9, 2)).astype(np.float32),
    "q_proj/weight": rng.standard_normal((2, 3, 6)),
    "k_proj/weight": rng.standard_normal((1, 3, 6)),
  }
  np.savez(tmp_path / "net.npz", **leaves)
  options = ["--layout", "torch", "--override", ".*_proj/weight=Dense((2,), (0, 1))"]
  names = ["--lora", "lora_A,lora_B", "--qk", "q_proj,k_proj"]
  found = as_json(capsys, tmp_path / "net.npz", *options, *names)
  rows = {row["path"]: row for row in found["operators"] if row["operator"] == "Product"}
  lora = leaves["0/lora_B/weight"].astype(float) @ leaves["0/lora_A/weight"]
  row = rows["0/lora_A*lora_B/weight"]
  assert (row["shape"], row["copies"]) == ([6, 9], 1)
  assert row["lower"] == pytest.approx(np.linalg.norm(lora, 2), rel=1e-5)
  assert row["frobenius"] == pytest.approx(np.linalg.norm(lora), rel=1e-5)
  assert row["stable_rank"] == pytest.approx(
    (np.linalg.norm(lora) / np.linalg.norm(lora, 2)) ** 2, rel=1e-4
  )
  heads = np.einsum("hdi,dj->hij", leaves["q_proj/weight"], leaves["k_proj/weight"][0])
  row = rows["q_proj*k_proj/weight"]
  assert (row["copies"], row["dtype"]) == (2, "float64")
  assert row["lower"] == pytest.approx(np.linalg.norm(heads, 2, axis=(1, 2)).max(), rel=1e-10)
  # Their factors were counted already.
  assert found["totals"]["operators"] == 4
  assert found["totals"]["parameters"] == sum(x.size for x in leaves.values())


@pytest.mark.parametrize(
  ("args", "code", "message"),
  [
    (["--lora"], 1, "No two matrices differ by 'lora_a' and 'lora_b'"),
    (["--qk", "Dense_0,Dense_1"], 1, "which does not say what heads are"),
    (["--lora", "one"], 2, "two parts of paths with a comma between"),
  ],
)
def test_products_that_are_not_there(tmp_path, capsys, args, code, message):
  kernels = {f"Dense_{i}/kernel": np.ones((4, 4), np.float32) for i in range(2)}
  np.savez(tmp_path / "net.npz", **kernels)
  if code == 2:
    with pytest.raises(SystemExit, match="2"):
      main(["report", str(tmp_path / "net.npz"), *args])
    assert message in capsys.readouterr().err
    return
  found = report(capsys, tmp_path / "net.npz", *args)
  assert found[0] == code
  assert message in found[2]


def test_stacks_and_large_matrices(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(report_rows, "BOUNDED_UP_TO", 2)
  path = tmp_path / "net.npz"
  stack = np.ones((3, 4, 4), np.float32) * np.arange(3, dtype=np.float32)[:, None, None]
  np.savez(path, **{"ScanBlock_0/kernel": stack})
  _, out, err = report(capsys, path)
  assert out.splitlines()[1].split("\t")[:4] == [
    "ScanBlock_0/kernel", "Dense((1,), (2,), (0,)) ×3", "3×4×4", "≈ 8"
  ]  # fmt: skip
  assert "--certify bounds leaves from above" in err
  assert as_json(capsys, path, "--certify")["operators"][0]["upper"] >= 8


def test_a_figure(saved, tmp_path, capsys):
  pytest.importorskip("matplotlib")
  out = tmp_path / "spectra.png"
  assert report(capsys, saved, "--figure", out)[0] == 0
  assert out.read_bytes().startswith(b"\x89PNG")
  with pytest.raises(SystemExit, match="Cannot write --figure"):
    report(capsys, saved, "--figure", tmp_path / "spectra.what")


def test_a_reader_that_goes_away(saved):
  command = f"{sys.executable} -m lipjax report {saved} | head -c 1"
  done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
  assert "Traceback" not in done.stderr
