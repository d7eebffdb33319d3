"""Whole networks of linen and nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certify.networks import copied, linen_resnet
from flax import linen as nn
from flax import nnx

import lipjax
from lipjax.certify.lipschitz import bounds_by_engine


def steepest(fn, x):
  """The largest norm of the Jacobian at a few points."""
  noise = jax.random.normal(jax.random.key(0), (4, *x.shape))
  jacobian = jax.jit(jax.jacrev(lambda x: fn(x).ravel()))
  points = [s * n for s, n in zip((0, 0.1, 1, 10), noise, strict=True)]
  matrices = [np.asarray(jacobian(x), np.float64) for x in points]
  return max(np.linalg.norm(m.reshape((len(m), -1)), 2) for m in matrices)


@pytest.mark.slow
def test_linen_and_nnx_agree_on_a_small_resnet():
  image = jnp.zeros((1, 16, 16, 3))
  linen, variables = linen_resnet(width=2, stages=2)
  model = copied(variables, width=2, stages=2)
  x = jax.random.normal(jax.random.key(3), image.shape)
  np.testing.assert_allclose(nnx.jit(model)(x), jax.jit(linen.apply)(variables, x), rtol=1e-4)
  of_linen = bounds_by_engine(linen.apply, 1, (variables, image), effort="fast")
  of_nnx = bounds_by_engine(lambda x: model(x), 0, (image,), effort="fast")
  assert float(of_nnx["liplt"]) == pytest.approx(float(of_linen["liplt"]), rel=1e-6)
  assert steepest(lambda x: linen.apply(variables, x), image) <= float(of_linen["liplt"])
  assert of_linen["liplt"] < 0.75 * of_linen["product"]


@pytest.mark.slow
def test_resnet_18():
  image = jnp.zeros((1, 32, 32, 3))
  linen, variables = linen_resnet()
  model = copied(variables)
  of_linen = bounds_by_engine(linen.apply, 1, (variables, image), effort="fast")
  of_nnx = bounds_by_engine(lambda x: model(x), 0, (image,), effort="fast")
  assert float(of_nnx["liplt"]) == pytest.approx(float(of_linen["liplt"]), rel=1e-6)
  assert steepest(lambda x: linen.apply(variables, x), image) <= float(of_linen["liplt"])
  assert of_linen["liplt"] < 0.75 * of_linen["product"]


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, xs):
    return nn.RNN(nn.SimpleCell(6))(xs)[..., -1, :]


class Gated(nn.Module):
  cell: type

  @nn.compact
  def __call__(self, xs):
    return nn.RNN(self.cell(4))(xs)[..., -1, :]


class UNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    down = nn.relu(nn.Conv(4, (3, 3), padding="CIRCULAR")(x))
    low = nn.silu(nn.Conv(4, (3, 3))(nn.avg_pool(down, (2, 2), (2, 2))))
    up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(low)
    return nn.Conv(1, (1, 1))(jnp.concatenate([down, up], axis=-1))


@pytest.mark.parametrize(
  ("model", "shape"),
  [
    (Recurrent(), (1, 3, 3)),
    pytest.param(Gated(nn.LSTMCell), (1, 3, 3), marks=pytest.mark.slow),
    pytest.param(Gated(nn.GRUCell), (1, 3, 3), marks=pytest.mark.slow),
    pytest.param(UNet(), (1, 8, 8, 1), marks=pytest.mark.slow),
  ],
  ids=["rnn", "lstm", "gru", "u-net"],
)
def test_modules(model, shape):
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape))
  upper = float(lipjax.lipschitz_upper_bound(model.apply, argnums=1)(variables, jnp.zeros(shape)))
  found = steepest(lambda x: model.apply(variables, x), jnp.zeros(shape))
  assert found <= upper * (1 + 1e-6)
  assert upper < 100 * found
