"""Paths: one spelling for one leaf, whatever wraps it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import meta

import lipjax
from lipjax.operators.paths import float_leaves, map_float_leaves

ONES = np.ones((2, 2), np.float32)


def test_paths_are_joined_by_slashes_and_sorted():
  tree = {"b": [ONES, {"c": ONES}], "a": (ONES,)}
  assert list(float_leaves(tree)) == ["a/0", "b/0", "b/1/c"]


def test_boxes_and_variables_do_not_change_a_path():
  boxed = {"kernel": meta.Partitioned(jnp.asarray(ONES), (None, "x"))}
  model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  state = nnx.state(model, nnx.Param)
  pure = nnx.to_pure_dict(state)
  assert list(float_leaves(boxed)) == ["kernel"]
  assert list(float_leaves(state)) == list(float_leaves(pure)) == ["bias", "kernel"]
  assert list(float_leaves(nnx.state(model))) == ["bias", "kernel"]


def test_an_attention_projection_called_value_keeps_its_name():
  assert list(float_leaves({"attn": {"value": {"kernel": ONES}}})) == ["attn/value/kernel"]


def test_what_holds_no_weights_is_left_out():
  tree = {
    "act": jax.nn.relu,
    "count": jnp.zeros((), jnp.int32),
    "flag": np.array(True),
    "key": jax.random.key(0),
    "name": "encoder",
    "nothing": None,
    "kernel": ONES,
  }
  assert list(float_leaves(tree)) == ["kernel"]
  doubled = map_float_leaves(lambda path, w: 2 * w, tree)
  assert doubled["act"] is jax.nn.relu
  assert doubled["nothing"] is None
  np.testing.assert_array_equal(doubled["kernel"], 2 * ONES)


def test_shape_structs_are_leaves():
  assert list(float_leaves({"kernel": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)})) == ["kernel"]


def test_two_leaves_of_one_path_raise():
  tree = {"a/b": ONES, "a": {"b": ONES}}
  with pytest.raises(ValueError, match=r"'a/b'.*rename"):
    float_leaves(tree)


@pytest.mark.parametrize("measure", [lipjax.spectral_norms, lipjax.describe, lipjax.l1_penalty])
def test_a_complex_leaf_raises_with_its_name(measure):
  with pytest.raises(ValueError, match=r"'fourier/kernel' is complex64"):
    measure({"fourier": {"kernel": np.ones((2, 2), np.complex64)}})
