"""State dicts of PyTorch, with slashes for dots: names and shapes as its modules have them."""

import jax
import jax.numpy as jnp
import pytest

import lipjax
from lipjax import Dense, Diagonal, ReshapedKernel

OUT_IN = Dense((1,), (0,))
TOLD = {
  "fc/weight": ((3, 4), OUT_IN),
  "transformer/h/0/attn/c_attn/weight": ((8, 24), OUT_IN),
  "embed_tokens/weight": ((100, 8), OUT_IN),
  "self_attn/in_proj_weight": ((24, 8), OUT_IN),
  "lstm/weight_ih_l0": ((16, 4), OUT_IN),
  "lstm/weight_hh_l1_reverse": ((16, 4), OUT_IN),
  "bn1/weight": ((4,), Diagonal()),
  "LayerNorm/gamma": ((4,), Diagonal()),
  "layer1/0/conv1/weight": ((8, 4, 3, 3), ReshapedKernel((1, 2, 3), (0,))),
  "layer1/0/downsample/0/weight": ((8, 4, 1, 1), ReshapedKernel((1, 2, 3), (0,))),
  "conv/weight": ((8, 4, 3), ReshapedKernel((1, 2), (0,))),
  "up/conv_transpose/weight": ((8, 4, 3, 3), ReshapedKernel((0, 2, 3), (1,))),
  "fc/bias": ((3,), None),
  "self_attn/in_proj_bias": ((24,), None),
  "self_attn/bias_k": ((1, 1, 8), None),
  "lstm/bias_hh_l0": ((16,), None),
  "LayerNorm/beta": ((4,), None),
  "bn1/running_mean": ((4,), None),
  "bn1/running_var": ((4,), None),
}
NOT_TOLD = {
  "experts/weight": (8, 4, 4),
  "cls_token": (1, 1, 8),
  "attn/relative_position_bias_table": (169, 4),
  "scale": (),
}


def operator(path, shape):
  return lipjax.torch_layout(path, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("path", TOLD)
def test_told(path):
  shape, expected = TOLD[path]
  found = operator(path, shape)
  assert found == expected
  if found is not None:
    found.validate(shape)


@pytest.mark.parametrize("path", NOT_TOLD)
def test_not_told(path):
  with pytest.raises(lipjax.AmbiguousLeafError, match="layout_overrides"):
    operator(path, NOT_TOLD[path])
