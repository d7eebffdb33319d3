"""The two networks of ``claims``, and what their kernels are as linear maps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lipjax
from benchmarks.experiments.supervised_data import Data

CLASSES = 10
HIDDEN = 256, 256
SIDE = 8  # Of the digits.
FEATURES, STRIDES = (16, 32, 32), (1, 2, 2)


# Compared by identity, so that programs are compiled once for each network.
@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A classifier of flat images with pixels in [0, 1].

  Attributes:
    name: as printed.
    sizes: as printed.
    shapes: of its kernels, by layer.
    logits: of parameters and a batch of images.
    layout: ``{path: operator}``, the maps that the kernels are; None for biases.
  """

  name: str
  sizes: str
  shapes: dict[str, tuple[int, ...]]
  logits: Callable[[Any, jax.Array], jax.Array]
  layout: dict[str, lipjax.LinearOperator | None]

  def init(self, key: jax.Array) -> Any:
    """Kernels of variance 2/inputs, and biases of zero."""
    keys = jax.random.split(key, len(self.shapes))
    return {
      layer: {"kernel": _kernel(k, shape), "bias": jnp.zeros(shape[-1])}
      for k, (layer, shape) in zip(keys, self.shapes.items(), strict=True)
    }


def networks(data: Data) -> list[Network]:
  """The perceptron, and on digits the convolutions too: on CIFAR-10 they would take hours."""
  n_pixels = data.train.images.shape[1]
  return [mlp(n_pixels), cnn()] if n_pixels == SIDE**2 else [mlp(n_pixels)]


def mlp(n_pixels: int, hidden: tuple[int, ...] = HIDDEN) -> Network:
  """A perceptron of hidden layers of ReLU."""
  sizes = (n_pixels, *hidden, CLASSES)
  shapes = {f"dense_{i}": pair for i, pair in enumerate(itertools.pairwise(sizes))}
  *inner, last = shapes

  def logits(params, images):
    x = images - 0.5
    for layer in inner:
      x = jax.nn.relu(_dense(params[layer], x))
    return _dense(params[last], x)

  layout = {f"{layer}/kernel": lipjax.Dense() for layer in shapes}
  return Network("MLP", "-".join(map(str, sizes)), shapes, logits, layout | _biases(shapes))


def cnn() -> Network:
  """Three 3×3 convolutions with ReLU and a dense layer, of digits."""
  pairs = itertools.pairwise((1, *FEATURES))
  shapes = {f"conv_{i}": (3, 3, *pair) for i, pair in enumerate(pairs)}
  strides = dict(zip(shapes, STRIDES, strict=True))

  def logits(params, images):
    x = images.reshape(-1, SIDE, SIDE, 1) - 0.5
    for layer, stride in strides.items():
      x = jax.nn.relu(convolve(x, params[layer]["kernel"], stride) + params[layer]["bias"])
    return _dense(params["dense"], x.reshape(len(x), -1))

  layout, side = {}, SIDE
  for layer, stride in strides.items():
    layout[f"{layer}/kernel"] = lipjax.Convolution((side, side), strides=stride)
    side //= stride
  layout["dense/kernel"] = lipjax.Dense()
  shapes["dense"] = side**2 * FEATURES[-1], CLASSES
  sizes = f"3×3 convolutions of {', '.join(map(str, FEATURES))} features, strides"
  sizes += f" {', '.join(map(str, STRIDES))}, and a dense layer"
  return Network("CNN", sizes, shapes, logits, layout | _biases(shapes))


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """The convolution with padding ``"SAME"`` of a batch, as one product of matrices.

  XLA's own is slow in a loop on a CPU.
  """
  size, side = kernel.shape[0], x.shape[1]
  out = -(-side // stride)
  last = (out - 1) * stride + 1
  total = last - 1 + size - side
  pad = (total // 2, total - total // 2)
  x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
  places = itertools.product(range(size), repeat=2)
  patches = [x[:, i : i + last : stride, j : j + last : stride] for i, j in places]
  return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _dense(layer, x):
  return x @ layer["kernel"] + layer["bias"]


def _kernel(key, shape):
  return jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[:-1]))


def _biases(shapes) -> dict[str, None]:
  return dict.fromkeys(f"{layer}/bias" for layer in shapes)
