"""Networks whose Lipschitz constants are bounded, as they are initialised, and published ones."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from lipjax.certify.bounds.effort import Effort

#: A checkout of arobey1/LipSDP's weights, beside this repository.
LIPSDP = Path(__file__).parents[3] / "shared" / "data" / "lipsdp"

#: As printed by others of their own runs or of the truth, not measured here.
PUBLISHED = {
  "LipSDP random_weights": {
    "exact (all weights positive)": 36.48223,
    "LipSDP-Neuron": 36.482,
    "LipSDP-Layer": 39.839,
  },
  "LipSDP mnist_weights": {"truth is at least": 24.2992, "truth is at most": 24.320},
}


class Network(NamedTuple):
  """A function of parameters and inputs, and one example.

  Attributes:
    apply: ``apply(params, x)``; axis 0 of x is the batch.
    params: its parameters.
    x: one example.
    matrices: of a chain of dense layers with ReLU between, the weights (outputs, inputs).
    search: options of `lipschitz_lower_bound` that take seconds, not hours.
    radii: of the balls around x on which it is bounded too.
    efforts: with how much.
    is_lipschitz: whether it is on all inputs.
  """

  apply: Callable[..., Any]
  params: Any
  x: jax.Array
  matrices: list[np.ndarray] | None = None
  search: dict[str, Any] = {}  # noqa: RUF012
  radii: tuple[float, ...] = ()
  efforts: tuple[Effort, ...] = ("default", "tight")
  is_lipschitz: bool = True


def published(file: str) -> Network:
  from scipy.io import loadmat

  weights = loadmat(LIPSDP / file)["weights"].ravel()
  return chain([np.asarray(w, np.float32) for w in weights])


def mlp() -> Network:
  rng, widths = np.random.default_rng(0), (784, 256, 256, 10)
  return chain(
    [
      (rng.standard_normal((n, m)) * (2 / m) ** 0.5).astype(np.float32)
      for m, n in itertools.pairwise(widths)
    ]
  )


def random_mlp(width: int, depth: int) -> Network:
  """As many hidden layers, all of one width, with weights N(0, 1/inputs)."""
  rng = np.random.default_rng(0)
  shapes = [(width, width)] * depth + [(10, width)]
  weights = [rng.standard_normal(shape) / shape[1] ** 0.5 for shape in shapes]
  return chain([w.astype(np.float32) for w in weights])


def chain(matrices: list[np.ndarray]) -> Network:
  params = [jnp.asarray(w) for w in matrices]
  x = jnp.zeros((1, matrices[0].shape[1]))
  return Network(relu_mlp, [(w,) for w in params], x, matrices=matrices)


def relu_mlp(params: list[tuple[jax.Array, ...]], x: jax.Array) -> jax.Array:
  """Of a batch, from a weight (outputs, inputs) and perhaps a bias for each layer."""
  for layer in params[:-1]:
    x = jax.nn.relu(_dense(x, *layer))
  return _dense(x, *params[-1])


def _dense(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  return x @ weight.T if bias is None else x @ weight.T + bias


class CNN(nn.Module):
  """Two convolutions with batch norm and max pool, two dense layers."""

  @nn.compact
  def __call__(self, x):
    """Logits of a batch."""
    for features in (32, 64):
      x = nn.Conv(features, (3, 3), use_bias=False)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(128)(x.reshape((x.shape[0], -1))))
    return nn.Dense(10)(x)


class Block(nn.Module):
  """Two convolutions, and a shortcut that is one where shapes differ."""

  features: int
  strides: int

  @nn.compact
  def __call__(self, x):
    """Logits of a batch."""
    norm = lambda: nn.BatchNorm(use_running_average=True)
    conv = lambda k, s: nn.Conv(self.features, (k, k), strides=s, use_bias=False)
    y = norm()(conv(3, 1)(nn.relu(norm()(conv(3, self.strides)(x)))))
    return nn.relu(y + (x if x.shape == y.shape else norm()(conv(1, self.strides)(x))))


class ResNet18(nn.Module):
  """For 32×32 images."""

  @nn.compact
  def __call__(self, x):
    """Logits of a batch."""
    x = nn.Conv(64, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    for stage in range(4):
      for block in range(2):
        x = Block(64 * 2**stage, 2 if stage and not block else 1)(x)
    return nn.Dense(10)(x.mean(axis=(1, 2)))


class LSTM(nn.Module):
  """The last state of a scan, and logits from it."""

  @nn.compact
  def __call__(self, x):
    """Logits of a batch."""
    return nn.Dense(10)(jnp.asarray(nn.RNN(nn.LSTMCell(32))(x))[:, -1])


class TransformerBlock(nn.Module):
  """Self-attention of two heads and a GELU layer, each after a layer norm."""

  @nn.compact
  def __call__(self, x):
    """Sequences of a batch."""
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
    return x + nn.Dense(x.shape[-1])(y)


class NnxBlock(nnx.Module):
  """As `Block`."""

  def __init__(self, c_in, c_out, strides, rngs):
    conv = lambda c, k, s: nnx.Conv(c, c_out, (k, k), strides=s, use_bias=False, rngs=rngs)
    norm = lambda: nnx.BatchNorm(c_out, use_running_average=True, rngs=rngs)
    self.conv_1, self.norm_1 = conv(c_in, 3, strides), norm()
    self.conv_2, self.norm_2 = conv(c_out, 3, 1), norm()
    self.has_shortcut = strides != 1 or c_in != c_out
    if self.has_shortcut:
      self.conv_3, self.norm_3 = conv(c_in, 1, strides), norm()

  def __call__(self, x):
    """Logits of a batch."""
    y = self.norm_2(self.conv_2(nnx.relu(self.norm_1(self.conv_1(x)))))
    return nnx.relu(y + (self.norm_3(self.conv_3(x)) if self.has_shortcut else x))


class NnxResNet18(nnx.Module):
  """As `ResNet18`."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 64, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(64, use_running_average=True, rngs=rngs)
    blocks, c_in = [], 64
    for stage in range(4):
      for block in range(2):
        blocks.append(NnxBlock(c_in, 64 * 2**stage, 2 if stage and not block else 1, rngs))
        c_in = 64 * 2**stage
    self.blocks = nnx.List(blocks)
    self.dense = nnx.Linear(c_in, 10, rngs=rngs)

  def __call__(self, x):
    """Logits of a batch."""
    x = nnx.relu(self.norm(self.conv(x)))
    for block in self.blocks:
      x = block(x)
    return self.dense(x.mean(axis=(1, 2)))


def transformer(**options: Any) -> Network:
  x = jax.random.normal(jax.random.key(2), (1, 8, 16))
  return linen(TransformerBlock(), x.shape, **options)._replace(x=x, is_lipschitz=False)


def linen(model: nn.Module, shape: tuple[int, ...], **options: Any) -> Network:
  x = jnp.zeros(shape)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  return Network(model.apply, with_statistics(variables), x, **options)


def nnx_resnet18(**options: Any) -> Network:
  graph, state = nnx.split(NnxResNet18(nnx.Rngs(0)))
  apply = lambda state, x: nnx.merge(graph, state)(x)
  # Running statistics belong to the parameters here.
  return Network(apply, with_statistics(state), jnp.zeros((1, 32, 32, 3)), **options)


def with_statistics(params: Any) -> Any:
  """Running statistics and scales as after training: not zeros and ones."""

  def leaf(path, x):
    names = {str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path}
    if not names & {"var", "scale", "mean"}:
      return x
    salt = zlib.crc32(jax.tree_util.keystr(path).encode()) % 2**31
    noise = jax.random.uniform(jax.random.fold_in(jax.random.key(1), salt), x.shape)
    return noise - 0.5 if "mean" in names else 0.5 + noise

  return jax.tree_util.tree_map_with_path(leaf, params)


#: Of balls around an example.
RADII = (0.01, 0.05, 0.1, 0.3, 1.0)
RESNET = {"n_starts": 2, "n_ascent_steps": 24}
NETWORKS: dict[str, Callable[[], Network]] = {
  "LipSDP random_weights": lambda: published("random_weights.mat"),
  "LipSDP mnist_weights": lambda: published("mnist_weights.mat"),
  "MLP 784-256-256-10": mlp,
  "MLP 2×32": lambda: random_mlp(32, 2),
  "MLP 8×32": lambda: random_mlp(32, 8),
  "MLP 4×128": lambda: random_mlp(128, 4),
  "MLP 2×512": lambda: random_mlp(512, 2),
  "MLP 8×512": lambda: random_mlp(512, 8),
  "CNN 28×28": lambda: linen(CNN(), (1, 28, 28, 1), search={"n_starts": 8}),
  "ResNet-18 linen": lambda: linen(ResNet18(), (1, 32, 32, 3), search=RESNET),
  "ResNet-18 nnx": lambda: nnx_resnet18(search=RESNET),
  "LSTM, 16 steps": lambda: linen(LSTM(), (1, 16, 16), search={"n_starts": 8}),
  # 300 steps on its ellipsoid take a quarter of an hour.
  "transformer block": lambda: transformer(radii=RADII, efforts=("default",)),
}
