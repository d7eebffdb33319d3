"""Networks trained on scikit-learn's digits, in seconds and the same way every time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.speed.certify_networks import RADII, Network, relu_mlp
from lipjax.commands import demo_data

STEPS, BATCH, RATE = 600, 128, 3e-3


class DigitsCNN(nn.Module):
  """Two convolutions, the second with stride 2, and a dense layer."""

  @nn.compact
  def __call__(self, x):
    """Logits of a batch."""
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
    return nn.Dense(10)(x.reshape((x.shape[0], -1)))


def digits_mlp() -> Network:
  rng, widths = np.random.default_rng(0), (64, 64, 64, 10)
  weights = [rng.standard_normal((n, m)) * (2 / m) ** 0.5 for m, n in itertools.pairwise(widths)]
  params = [(jnp.asarray(w, jnp.float32), jnp.zeros(len(w))) for w in weights]
  params, x = _trained(relu_mlp, params, (64,))
  return Network(relu_mlp, params, x, matrices=[np.asarray(w) for w, _ in params], radii=RADII)


def digits_cnn() -> Network:
  model, shape = DigitsCNN(), (8, 8, 1)
  params = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
  params, x = _trained(model.apply, params, shape)
  return Network(model.apply, params, x, radii=RADII)


def _trained(
  apply: Callable[..., Any], params: Any, shape: tuple[int, ...]
) -> tuple[Any, jax.Array]:
  """Parameters after Adam's steps, and a test example."""
  data = demo_data.load()
  images, labels = data.train.images.reshape((-1, *shape)), data.train.labels
  optimizer = optax.adam(RATE)

  def loss(params, rows):
    logits = apply(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

  def step(carry, key):
    params, state = carry
    rows = jax.random.choice(key, len(images), (BATCH,), replace=False)
    updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(functools.partial(jax.lax.scan, step))
  keys = jax.random.split(jax.random.key(0), STEPS)
  params = run((params, optimizer.init(params)), keys)[0][0]
  return params, data.test.images[:1].reshape((1, *shape))


#: Left out where scikit-learn is not installed.
DIGITS: dict[str, Callable[[], Network]] = {
  "digits MLP 64-64-64-10": digits_mlp,
  "digits CNN": digits_cnn,
}
