"""Muon's axes are those of the layers' matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from optax.contrib import MuonDimensionNumbers

import lipjax


class Model(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
    x = nn.Conv(6, (3,))(x)
    return nn.Dense(3)(x)


PARAMS = Model().init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]


def test_axes():
  found = lipjax.muon_dimension_numbers(PARAMS)
  attention = found["MultiHeadDotProductAttention_0"]
  assert attention["value"]["kernel"] == MuonDimensionNumbers((0,), (1, 2))
  assert attention["out"]["kernel"] == MuonDimensionNumbers((0, 1), (2,))
  assert found["Conv_0"]["kernel"] == MuonDimensionNumbers((0, 1), (2,))
  assert found["Dense_0"]["kernel"] == MuonDimensionNumbers((0,), (1,))
  assert attention["out"]["bias"] is None
  assert found["LayerNorm_0"]["scale"] is None


def test_convolutions_and_stacks():
  params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "ScanA_0": {"kernel": jnp.ones((5, 2, 2))}}
  overrides = {"conv/kernel": lipjax.Convolution((8, 8))}
  found = lipjax.muon_dimension_numbers(params, layout_overrides=overrides)
  assert found["conv"]["kernel"] == MuonDimensionNumbers((0, 1, 2), (3,))
  assert found["ScanA_0"]["kernel"] == MuonDimensionNumbers((1,), (2,))
  grouped = {"conv/kernel": lipjax.Convolution((8, 8), feature_group_count=2)}
  with pytest.raises(ValueError, match="of 2 groups"):
    lipjax.muon_dimension_numbers(params, layout_overrides=grouped)


def test_updates_are_orthogonal_as_the_layers_apply_them():
  """Of attention kernels too, which Muon by itself hands to Adam without a word."""
  tx = optax.contrib.muon(1.0, muon_weight_dimension_numbers=lipjax.muon_dimension_numbers)
  grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), PARAMS)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  out = updates["MultiHeadDotProductAttention_0"]["out"]["kernel"].reshape((8, 8))
  values = np.linalg.svd(np.asarray(out), compute_uv=False)
  assert values.min() > 0.6
  assert values.max() < 1.3
  bias = np.abs(updates["Dense_0"]["bias"])
  np.testing.assert_allclose(bias, bias[0], rtol=1e-3)  # Adam's first step: signs
