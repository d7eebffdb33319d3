"""ResNet-18 for 32×32 images, in linen and in nnx."""

import zlib

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class LinenBlock(nn.Module):
  features: int
  strides: int

  @nn.compact
  def __call__(self, x):
    norm = lambda: nn.BatchNorm(use_running_average=True)
    conv = lambda k, s: nn.Conv(self.features, (k, k), strides=s, use_bias=False)
    y = nn.relu(norm()(conv(3, self.strides)(x)))
    y = norm()(conv(3, 1)(y))
    if x.shape != y.shape:
      x = norm()(conv(1, self.strides)(x))
    return nn.relu(x + y)


class LinenResNet(nn.Module):
  width: int = 64
  stages: int = 4

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    for stage in range(self.stages):
      for block in range(2):
        x = LinenBlock(self.width * 2**stage, 2 if stage and not block else 1)(x)
    return nn.Dense(10)(x.mean(axis=(1, 2)))


class NnxBlock(nnx.Module):
  def __init__(self, c_in, c_out, strides, rngs):
    conv = lambda c, k, s: nnx.Conv(c, c_out, (k, k), strides=s, use_bias=False, rngs=rngs)
    norm = lambda: nnx.BatchNorm(c_out, use_running_average=True, rngs=rngs)
    self.conv_1, self.norm_1 = conv(c_in, 3, strides), norm()
    self.conv_2, self.norm_2 = conv(c_out, 3, 1), norm()
    self.has_shortcut = strides != 1 or c_in != c_out
    if self.has_shortcut:
      self.conv_3, self.norm_3 = conv(c_in, 1, strides), norm()

  def __call__(self, x):
    y = nnx.relu(self.norm_1(self.conv_1(x)))
    y = self.norm_2(self.conv_2(y))
    return nnx.relu(y + (self.norm_3(self.conv_3(x)) if self.has_shortcut else x))


class NnxResNet(nnx.Module):
  def __init__(self, rngs, width=64, stages=4):
    self.conv = nnx.Conv(3, width, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
    blocks, c_in = [], width
    for stage in range(stages):
      for block in range(2):
        c_out = width * 2**stage
        blocks.append(NnxBlock(c_in, c_out, 2 if stage and not block else 1, rngs))
        c_in = c_out
    self.blocks = nnx.List(blocks)
    self.dense = nnx.Linear(c_in, 10, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    for block in self.blocks:
      x = block(x)
    return self.dense(x.mean(axis=(1, 2)))


def with_statistics(variables, key):
  """Running statistics and scales as after training: not zeros and ones."""

  def leaf(path, x):
    name = path[-1].key
    salt = zlib.crc32(jax.tree_util.keystr(path).encode()) % 2**31
    noise = jax.random.uniform(jax.random.fold_in(key, salt), x.shape)
    return 0.5 + noise if name in ("var", "scale") else noise - 0.5 if name == "mean" else x

  return jax.tree_util.tree_map_with_path(leaf, variables)


def linen_resnet(width=64, stages=4, seed=0):
  model = LinenResNet(width, stages)

  @jax.jit
  def init(key, another):
    return with_statistics(model.init(key, jnp.ones((1, 32, 32, 3))), another)

  return model, init(jax.random.key(seed), jax.random.key(seed + 1))


def copied(variables, width=64, stages=4):
  """The nnx network with the linen network's weights."""
  model = nnx.eval_shape(lambda: NnxResNet(nnx.Rngs(0), width, stages))
  params, statistics = variables["params"], variables["batch_stats"]

  def conv(ours, params):
    ours.kernel.set_value(params["kernel"])

  def norm(ours, params, statistics):
    ours.scale.set_value(params["scale"])
    ours.bias.set_value(params["bias"])
    ours.mean.set_value(statistics["mean"])
    ours.var.set_value(statistics["var"])

  conv(model.conv, params["Conv_0"])
  norm(model.norm, params["BatchNorm_0"], statistics["BatchNorm_0"])
  for i, block in enumerate(model.blocks):
    theirs, running = params[f"LinenBlock_{i}"], statistics[f"LinenBlock_{i}"]
    for j in range(3 if block.has_shortcut else 2):
      conv(getattr(block, f"conv_{j + 1}"), theirs[f"Conv_{j}"])
      norm(getattr(block, f"norm_{j + 1}"), theirs[f"BatchNorm_{j}"], running[f"BatchNorm_{j}"])
  model.dense.kernel.set_value(params["Dense_0"]["kernel"])
  model.dense.bias.set_value(params["Dense_0"]["bias"])
  return model
