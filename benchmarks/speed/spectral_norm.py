"""One training step of a small CNN, with and without spectral normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.speed.timing import Case, compare, compile_case
from benchmarks.speed.torch_peer import torch_cases
from lipjax.integrations import linen as lipjax_linen
from lipjax.integrations import nnx as lipjax_nnx

SGD = optax.sgd(1e-3)
FEATURES = (32, 64, 64)
SIDE = 16
CLASSES = 10
#: Each wrapper's own baseline.
OVERHEADS = {
  "flax_linen": "plain",
  "lipjax_linen": "plain",
  "lipjax_nnx": "plain_nnx",
  "torch": "torch_plain",
}


def run(size: int, blocks: int | None = None) -> dict[str, Any]:
  """Rows for batches of `size` images 16×16×3, every layer wrapped.

  The network is three 3×3 convolutions (32, 64 and 64 channels, the last two of stride
  2) and a Dense layer; a step is a gradient of the cross entropy and SGD. Flax's nnx
  wrapper is left out: it overwrites the weights, so its step is another. PyTorch's rows are
  there where it is installed; its overhead is over its own plain step.
  """
  batch = jax.random.normal(jax.random.key(1), (size, SIDE, SIDE, 3)), jnp.arange(size) % CLASSES
  nets = {
    "plain": LinenNet(None),
    "plain_again": LinenNet(None),
    "flax_linen": LinenNet(nn.SpectralNorm),
    "lipjax_linen": LinenNet(lipjax_linen.SpectralNorm),
  }
  cases = {name: _linen_step(net, *batch) for name, net in nets.items()}
  for name, wrap in (
    ("plain_nnx", lambda layer, rngs: layer),
    ("lipjax_nnx", lambda layer, rngs: lipjax_nnx.SpectralNorm(layer, rngs=rngs)),
  ):
    cases[name] = _nnx_step(NnxNet(wrap, nnx.Rngs(0)), *batch)
  cases |= torch_cases(*map(np.asarray, batch), FEATURES)
  rows = compare(cases, baseline="plain", blocks=blocks or 30, steps=10, keep_carry=True)
  return {
    "benchmark": "spectral_norm",
    "size": size,
    "rows": rows,
    "overhead": {
      name: rows[name]["median_ms"] / rows[plain]["median_ms"] - 1
      for name, plain in OVERHEADS.items()
      if name in rows
    },
  }


class LinenNet(nn.Module):
  """The network in linen, its layers in `wrapper` unless that is None."""

  wrapper: Any

  @nn.compact
  def __call__(self, x):  # noqa: D102
    wrapped = (
      (lambda layer, x: layer(x))
      if self.wrapper is None
      else (lambda layer, x: self.wrapper(layer)(x, update_stats=True))
    )
    for i, features in enumerate(FEATURES):
      x = nn.relu(wrapped(nn.Conv(features, (3, 3), strides=2 if i else 1), x))
    return wrapped(nn.Dense(CLASSES), x.reshape((x.shape[0], -1)))


class NnxNet(nnx.Module):
  """The same network in nnx."""

  def __init__(self, wrap: Callable[..., Any], rngs: nnx.Rngs):
    channels = (3, *FEATURES)
    self.convolutions = nnx.List(
      wrap(nnx.Conv(n, m, (3, 3), strides=2 if i else 1, rngs=rngs), rngs)
      for i, (n, m) in enumerate(zip(channels, FEATURES, strict=False))
    )
    self.head = wrap(nnx.Linear(FEATURES[-1] * (SIDE // 4) ** 2, CLASSES, rngs=rngs), rngs)

  def __call__(self, x):  # noqa: D102
    for convolution in self.convolutions:
      x = jax.nn.relu(convolution(x))
    return self.head(x.reshape((x.shape[0], -1)))


def _cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _linen_step(net: LinenNet, x: jax.Array, labels: jax.Array) -> Case:
  variables = dict(net.init(jax.random.key(0), x))
  params, others = variables.pop("params"), variables

  def step(carry, x, labels):
    params, others, state = carry

    def loss(params):
      logits, new = net.apply({"params": params} | others, x, mutable=list(others))
      return _cross_entropy(logits, labels), new

    gradients, others = jax.grad(loss, has_aux=True)(params)
    updates, state = SGD.update(gradients, state)
    return optax.apply_updates(params, updates), others, state

  return compile_case(step, (params, others, SGD.init(params)), x, labels, donate=True)


def _nnx_step(net: NnxNet, x: jax.Array, labels: jax.Array) -> Case:
  graph, params, others = nnx.split(net, nnx.Param, ...)

  def step(carry, x, labels):
    params, others, state = carry

    def loss(params):
      net = nnx.merge(graph, params, others, copy=True)
      return _cross_entropy(net(x), labels), nnx.state(net, nnx.Not(nnx.Param))

    gradients, others = jax.grad(loss, has_aux=True)(params)
    updates, state = SGD.update(gradients, state)
    return optax.apply_updates(params, updates), others, state

  return compile_case(step, (params, others, SGD.init(params)), x, labels, donate=True)
