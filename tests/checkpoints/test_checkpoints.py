"""Checkpoints by their own libraries are read as what was saved; others give one clear line."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from lipjax.checkpoints.checkpoint import CheckpointError
from lipjax.checkpoints.opening import open_checkpoint

TREE = {
  "params": {
    "Dense_0": {"kernel": jnp.arange(12.0).reshape(4, 3), "bias": jnp.zeros(3)},
    "half": {"kernel": jnp.ones((2, 2), jnp.bfloat16)},
  },
  "step": jnp.int32(3),
}
PATHS = {"params/Dense_0/kernel", "params/Dense_0/bias", "params/half/kernel", "step"}


def orbax(path):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, TREE)
  return path


def manager(path, items=("default",), steps=(5, 20)):
  names = None if items == ("default",) else items
  with ocp.CheckpointManager(path, item_names=names) as saved:
    for step in steps:
      one = ocp.args.StandardSave(jax.tree.map(lambda x: x + step, TREE))
      saved.save(
        step, args=one if names is None else ocp.args.Composite(**dict.fromkeys(items, one))
      )
  return path


def msgpack(path):
  path = path.with_suffix(".msgpack")
  path.write_bytes(serialization.to_bytes(TREE))
  return path


def flat():
  keys = jax.tree_util.tree_flatten_with_path(TREE)[0]
  return {jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(x) for key, x in keys}


def npz(path):
  path = path.with_suffix(".npz")
  np.savez(path, **{key: x for key, x in flat().items() if x.dtype != jnp.bfloat16})
  return path


def safetensors(path):
  numpy = pytest.importorskip("safetensors.numpy")
  path = path.with_suffix(".safetensors")
  numpy.save_file({key.replace("/", "."): x for key, x in flat().items()}, path)
  return path


def shards(path):
  numpy = pytest.importorskip("safetensors.numpy")
  path.mkdir()
  arrays = {key.replace("/", "."): x for key, x in flat().items()}
  files = {}
  for i, (name, x) in enumerate(arrays.items()):
    files[name] = f"model-{i}.safetensors"
    numpy.save_file({name: x}, path / files[name])
  (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
  return path


WRITERS = {fn.__name__: fn for fn in (orbax, msgpack, npz, safetensors, shards)}


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_saved_is_read(name, tmp_path):
  found = open_checkpoint(WRITERS[name](tmp_path / "saved"))
  expected = {key: x for key, x in flat().items() if name != "npz" or x.dtype != jnp.bfloat16}
  assert dict(found.leaves) == {
    key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in expected.items()
  }
  for some in found.batches(list(expected), 50):
    for key, x in some.items():
      np.testing.assert_array_equal(x, expected.pop(key))
  assert not expected


def test_batches_are_of_so_many_bytes(tmp_path):
  found = open_checkpoint(msgpack(tmp_path / "saved"))
  paths = ["params/Dense_0/bias", "params/Dense_0/kernel", "params/half/kernel", "step"]
  assert [list(x) for x in found.batches(paths, 12)] == [[x] for x in paths[:2]] + [paths[2:]]


def test_of_a_manager_the_latest_step(tmp_path):
  kernel = "params/Dense_0/kernel"
  found = open_checkpoint(manager(tmp_path / "saved"))
  np.testing.assert_array_equal(
    found.read([kernel])[kernel], TREE["params"]["Dense_0"]["kernel"] + 20
  )
  found = open_checkpoint(tmp_path / "saved", "5")
  np.testing.assert_array_equal(
    found.read([kernel])[kernel], TREE["params"]["Dense_0"]["kernel"] + 5
  )


def test_several_items(tmp_path):
  root = manager(tmp_path / "saved", ("model", "ema"))
  with pytest.raises(CheckpointError, match="several items; name one: --item ema or --item model"):
    open_checkpoint(root)
  assert set(open_checkpoint(root, "ema").leaves) == PATHS
  assert set(open_checkpoint(root, "5/ema").leaves) == PATHS
  with pytest.raises(CheckpointError, match="has no item 'other'"):
    open_checkpoint(root, "other")


def test_large_arrays_of_flax_are_in_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
  path = msgpack(tmp_path / "saved")
  found = open_checkpoint(path)
  assert set(found.leaves) == PATHS
  for key, x in found.read(sorted(PATHS)).items():
    np.testing.assert_array_equal(x, flat()[key])


def test_many_entries_and_long_texts(tmp_path):
  tree = {
    "text": "x" * 10_000,
    "list": [1, 2],
    "layers": {str(i): np.ones(1) for i in range(70_000)},
  }
  path = tmp_path / "saved.msgpack"
  path.write_bytes(serialization.msgpack_serialize(tree))
  assert len(open_checkpoint(path).leaves) == 70_000


def truncated(write):
  def broken(path):
    path = write(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path

  return broken


def of_bytes(data, name="saved"):
  def write(path):
    path = path.with_name(name)
    path.write_bytes(data)
    return path

  return write


def folder(path):
  path.mkdir()
  return path


def lost_shard(path):
  path = shards(path)
  (path / "model-1.safetensors").unlink()
  return path


def broken_orbax(path):
  path = orbax(path)
  (path / "_METADATA").write_text("{")
  return path


class Evil:
  def __reduce__(self):
    return pytest.fail, ("unpickled",)


def objects(path):
  path = path.with_suffix(".npz")
  np.savez(path, kernel=np.array([Evil()], object))
  return path


def torch_zip(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
  return path


BROKEN = {
  "missing": (lambda path: path, "does not exist"),
  "empty": (of_bytes(b""), "is empty"),
  "empty folder": (folder, "is no checkpoint that is known"),
  "text": (of_bytes(b"hello, I am text"), "is not an orbax checkpoint, .safetensors"),
  "pickle": (of_bytes(pickle.dumps(Evil(), protocol=4)), "runs whatever code"),
  "PyTorch": (torch_zip, "runs whatever code"),
  "objects": (objects, "runs whatever code"),
  "no arrays": (of_bytes(serialization.msgpack_serialize({"a": 1})), "holds no arrays"),
  "index": (of_bytes(b"[]", "m.safetensors.index.json"), "no weight_map"),
  "lost shard": (lost_shard, "is not there"),
  "orbax": (broken_orbax, "cannot be read as an orbax checkpoint"),
  **{fn.__name__: (truncated(fn), "damaged") for fn in (msgpack, npz, safetensors)},
  "map of nothing": (of_bytes(b"\xdf\xff\xff\xff\xff"), "damaged"),
  "an array beyond the end": (of_bytes(b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01"), "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_clear_line(name, tmp_path):
  write, message = BROKEN[name]
  with pytest.raises(CheckpointError, match=message) as caught:
    open_checkpoint(write(tmp_path / "saved"))
  assert "\n" not in str(caught.value)
  assert str(tmp_path) in str(caught.value)


def damaged_member(path):
  path = npz(path)
  data = bytearray(path.read_bytes())
  data[data.index(b"NUMPY") + 6] = 9  # a version that there is not
  path.write_bytes(data)
  return path


def test_an_array_that_is_damaged(tmp_path):
  with pytest.raises(CheckpointError, match="damaged archive"):
    open_checkpoint(damaged_member(tmp_path / "saved"))
  path = npz(tmp_path / "saved")
  found = open_checkpoint(path)
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(CheckpointError, match="an array cannot be read"):
    found.read(["step"])


def test_other_files_in_an_archive(tmp_path):
  path = npz(tmp_path / "saved")
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("notes.txt", "hello")
  assert set(open_checkpoint(path).leaves) == PATHS - {"params/half/kernel"}


def test_an_item_of_a_file(tmp_path):
  with pytest.raises(CheckpointError, match="leave --item out"):
    open_checkpoint(msgpack(tmp_path / "saved"), "params")


def test_two_indices(tmp_path):
  path = shards(tmp_path / "saved")
  (path / "other.safetensors.index.json").write_text("{}")
  with pytest.raises(CheckpointError, match="holds 2 indices; name one of model"):
    open_checkpoint(path)
  assert set(open_checkpoint(path / "model.safetensors.index.json").leaves) == PATHS


def test_names_that_become_one(tmp_path):
  numpy = pytest.importorskip("safetensors.numpy")
  path = tmp_path / "saved.safetensors"
  numpy.save_file({"a.b": np.ones(1), "a/b": np.ones(1)}, path)
  with pytest.raises(CheckpointError, match="two arrays named 'a/b'"):
    open_checkpoint(path)


def test_names_that_become_one_in_msgpack(tmp_path):
  path = tmp_path / "saved.msgpack"
  path.write_bytes(serialization.msgpack_serialize({"a/b": np.ones(1), "a": {"b": np.ones(1)}}))
  with pytest.raises(CheckpointError, match="two arrays named 'a/b'"):
    open_checkpoint(path)


def test_types_of_arrays_that_are_not_read(tmp_path):
  pytest.importorskip("safetensors")
  header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
  path = tmp_path / "saved.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
  with pytest.raises(CheckpointError):
    open_checkpoint(path)


def test_without_safetensors(tmp_path, monkeypatch):
  path = safetensors(tmp_path / "saved")
  monkeypatch.setitem(sys.modules, "safetensors", None)
  with pytest.raises(CheckpointError, match=r'pip install "lipjax\[report\]"'):
    open_checkpoint(path)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
  path = msgpack(tmp_path / "saved")

  def denied(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(type(path), "open", denied)
  with pytest.raises(CheckpointError, match="Permission denied"):
    open_checkpoint(path)
