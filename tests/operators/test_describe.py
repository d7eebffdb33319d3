"""The table of decisions."""

import jax
import jax.numpy as jnp

import lipjax


def struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {
  "Conv_0": {"kernel": struct(3, 3, 2, 4), "bias": struct(4)},
  "DenseGeneral_0": {"kernel": struct(32, 8, 4)},
  "attn": {"query": {"kernel": struct(8, 2, 4), "bias": struct(2, 4)}},
  "ln": {"scale": struct(8, dtype=jnp.bfloat16)},
  "ScanBlock_0": {"Dense_0": {"kernel": struct(3, 8, 8)}},
  "step": struct(dtype=jnp.int32),
}


def rows(text):
  """The table's rows by path."""
  return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_every_leaf_has_a_row_and_nothing_raises():
  table = rows(lipjax.describe(PARAMS))
  assert "NOT the convolution's operator norm" in table["Conv_0/kernel"]
  assert "not a linear map" in table["Conv_0/bias"]
  assert "not a linear map" in table["attn/query/bias"]
  assert "Dense((0,), (1, 2))" in table["attn/query/kernel"]
  assert "AMBIGUOUS" in table["DenseGeneral_0/kernel"]
  assert "Diagonal" in table["ln/scale"]
  assert "bfloat16" in table["ln/scale"]
  assert "Dense((1,), (2,), (0,))" in table["ScanBlock_0/Dense_0/kernel"]
  assert "step" not in table


def test_an_ambiguous_row_says_the_override():
  text = " ".join(lipjax.describe(PARAMS).split())
  assert "layout_overrides={r'DenseGeneral_0/kernel'" in text.replace("\\", "")


def test_an_override_settles_the_row():
  overrides = {"DenseGeneral_0/kernel": lipjax.Dense((0,), (1, 2))}
  text = lipjax.describe(PARAMS, layout_overrides=overrides)
  assert "AMBIGUOUS" not in text


def test_unused_overrides_and_bare_arrays_are_shown():
  text = lipjax.describe(PARAMS, layout_overrides={"nowhere": None})
  assert "UNUSED" in text
  assert "nowhere" in text
  assert "(no name)" in lipjax.describe(struct(2, 3))


def test_an_operator_that_does_not_fit_is_shown():
  text = lipjax.describe({"a": struct(2, 3, 4)}, layout={"a": lipjax.Dense()})
  assert "AMBIGUOUS" in text or "(2, 3, 4)" in text
