"""Networks as Equinox, Haiku, linen and nnx write them, in evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certify.jacobians import compiled, steepest
from flax import linen as nn
from flax import nnx
from jax import lax
from reference import FLOAT

import lipjax

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")

KEYS = jax.random.split(jax.random.key(0), 8)
IMAGE, ROWS, VECTOR = (1, 4, 4, 2), (2, 3), (6,)


def shaken(tree, key=KEYS[0]):
  """Positive numbers near 1 in place of the statistics that nothing has been run on yet."""
  leaves, structure = jax.tree.flatten(tree)
  draw = lambda key, x: jax.random.uniform(key, x.shape, x.dtype, 0.5, 1.5)
  is_float = lambda x: eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
  keys = jax.random.split(key, len(leaves))
  leaves = [draw(k, x) if is_float(x) else x for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, leaves)


# Equinox: modules of one example, channels first.


def eqx_linear():
  conv = eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, key=KEYS[0])
  up = eqx.nn.ConvTranspose2d(3, 2, 2, stride=2, key=KEYS[1])
  layers = [conv, up, eqx.nn.AvgPool2d(3, 2), eqx.nn.Lambda(jnp.ravel)]
  return eqx.nn.Sequential([*layers, eqx.nn.Linear(2, 3, key=KEYS[2])]), (2, 4, 4)


def eqx_convolutions():
  layers = [
    eqx.nn.Conv2d(2, 3, 3, padding=1, key=KEYS[0]),
    eqx.nn.Lambda(eqx.nn.PReLU(0.3)),
    eqx.nn.MaxPool2d(2, 2),
    eqx.nn.ConvTranspose2d(3, 2, 2, stride=2, key=KEYS[1]),
    eqx.nn.Lambda(jax.nn.silu),
    eqx.nn.Dropout(0.5, inference=True),
    eqx.nn.AdaptiveAvgPool2d(2),
    eqx.nn.Lambda(jnp.ravel),
    eqx.nn.Linear(8, 3, key=KEYS[2]),
  ]
  return eqx.nn.Sequential(layers), (2, 4, 4)


def eqx_batch_norm():
  make = lambda key: eqx.nn.Sequential(
    [
      eqx.nn.Conv2d(2, 3, 3, key=key),
      eqx.nn.BatchNorm(3, axis_name="batch", mode="batch"),
      eqx.nn.AdaptiveMaxPool2d(2),
    ]
  )
  model, state = eqx.nn.make_with_state(make)(KEYS[0])
  model, state = eqx.nn.inference_mode(model), shaken(state)
  run = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
  return lambda x: run(x, state)[0], (1, 2, 5, 5)


def eqx_scan():
  cell = eqx.nn.LSTMCell(3, 3, key=KEYS[0])
  start = jnp.zeros(3), jnp.zeros(3)
  return lambda xs: lax.scan(lambda h, x: (cell(x, h), None), start, xs)[0][0], ROWS


def eqx_unrolled():
  cell = eqx.nn.GRUCell(3, 3, key=KEYS[0])
  return lambda xs: cell(xs[1], cell(xs[0], jnp.zeros(3))), ROWS


# Haiku: functions that are transformed.


def haiku(fn, shape, seed=0):
  pair = hk.without_apply_rng(hk.transform_with_state(fn))
  params, state = pair.init(jax.random.key(seed), jnp.zeros(shape))
  state = shaken(state)
  return lambda x: pair.apply(params, state, x)[0], shape


def hk_linear():
  def net(x):
    x = hk.Conv2D(3, 3, stride=2)(x)
    x = hk.avg_pool(hk.Conv2DTranspose(2, 3, stride=2)(x), (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return hk.Linear(3)(hk.Flatten()(x))

  return haiku(net, IMAGE)


def hk_resnet():
  def norm(x):
    return hk.BatchNorm(True, True, 0.9)(x, is_training=hk.running_init())

  def net(x):
    x = hk.max_pool(jax.nn.relu(norm(hk.Conv2D(3, 3)(x))), (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    block = hk.nets.ResNet.BlockGroup(
      channels=4, num_blocks=2, stride=2, bn_config=BN, resnet_v2=False, bottleneck=False,
      use_projection=True,
    )  # fmt: skip
    x = block(x, is_training=hk.running_init(), test_local_stats=False)
    x = hk.avg_pool(x, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return hk.Linear(3)(x.mean((1, 2)))

  return haiku(net, IMAGE)


BN = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}


def hk_lstm():
  def net(xs):
    core = hk.DeepRNN([hk.LSTM(3), jax.nn.relu, hk.GRU(3)])
    return hk.dynamic_unroll(core, xs, core.initial_state(None))[0]

  return haiku(net, ROWS)


def hk_layer_stack():
  layer = lambda x: jax.nn.relu(hk.nets.MLP([6, 6], activation=jnp.tanh)(x))
  return haiku(lambda x: hk.layer_stack(3)(layer)(x), VECTOR)


# linen: modules, or functions that make them.


class Compact(nn.Module):
  fn: object

  @nn.compact
  def __call__(self, x):
    return self.fn(x)


def linen(fn, shape):
  model = Compact(fn)
  variables = dict(model.init(KEYS[0], jnp.zeros(shape)))
  if "batch_stats" in variables:
    variables["batch_stats"] = shaken(variables["batch_stats"])
  return lambda x: model.apply(variables, x), shape


def linen_linear():
  def net(x):
    x = nn.ConvTranspose(3, (3, 3), strides=(2, 2))(nn.Conv(3, (3, 3), strides=2)(x))
    return nn.avg_pool(x, (3, 3), (2, 2), "SAME")

  return linen(net, IMAGE)


class Residual(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(6)(nn.silu(nn.Dense(6)(x))), x.mean()


def linen_scan():
  axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
  stack = nn.scan(nn.remat(Residual), length=3, **axes)
  return linen(lambda x: jnp.append(*stack()(x, None)), VECTOR)


def linen_convolutions():
  def net(x):
    x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(x)))
    x = nn.max_pool(nn.Dropout(0.5, deterministic=True)(x), (3, 3), (2, 2))
    x = nn.PReLU()(nn.Conv(3, (2, 2), padding="CIRCULAR", feature_group_count=3)(x))
    return nn.Dense(3)(x.mean((1, 2)))

  return linen(net, IMAGE)


def linen_bidirectional():
  rnn = lambda cell: nn.RNN(cell(3))
  return linen(lambda xs: nn.Bidirectional(rnn(nn.GRUCell), rnn(nn.OptimizedLSTMCell))(xs), ROWS)


# nnx: modules that hold their weights.


class Stack(nnx.Module):
  """A function of a few layers, which nnx finds in a list."""

  def __init__(self, fn, *layers):
    self.layers, self.fn = nnx.List(layers), fn

  def __call__(self, x):
    return self.fn(x, *self.layers)


def nnx_linear():
  rngs = nnx.Rngs(0)
  net = lambda x, a, b: nnx.avg_pool(b(a(x)), (2, 2), (2, 2)).ravel()
  down = nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs)
  return Stack(net, down, nnx.ConvTranspose(3, 2, (3, 3), strides=(2, 2), rngs=rngs)), IMAGE


def nnx_u_net():
  rngs = nnx.Rngs(0)
  norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
  norm.var.set_value(jnp.array([0.5, 1.0, 2.0]))
  layers = [nnx.Conv(2, 3, (3, 3), rngs=rngs), norm, nnx.Conv(3, 4, (3, 3), rngs=rngs)]
  layers.append(nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 2), rngs=rngs))
  layers += [nnx.Conv(6, 1, (1, 1), rngs=rngs), nnx.Dropout(0.5, deterministic=True, rngs=rngs)]

  def net(x, conv, norm, deep, up, last, dropout):
    down = nnx.relu(norm(conv(x)))
    low = nnx.gelu(deep(nnx.max_pool(down, (2, 2), (2, 2))))
    return last(jnp.concatenate([down, up(dropout(low))], axis=-1))

  return Stack(net, *layers), IMAGE


def inside(model, run=lambda model, x: model(x)):
  """For what writes to its own variables: made anew where it is traced."""
  parts = nnx.split(model)
  return lambda x: run(nnx.merge(*parts, copy=True), x)


def nnx_rnn(cell):
  return inside(nnx.RNN(cell(3, 4, rngs=nnx.Rngs(0)))), (1, *ROWS)


def nnx_simple():
  return nnx_rnn(nnx.SimpleCell)


def nnx_lstm():
  return nnx_rnn(nnx.LSTMCell)


def nnx_scan():
  @nnx.split_rngs(splits=3)
  @nnx.vmap
  def make(rngs):
    return nnx.Linear(6, 6, rngs=rngs)

  layer = nnx.remat(lambda x, layer: nnx.leaky_relu(layer(x)))
  turn = nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  return inside(make(nnx.Rngs(0)), lambda layers, x: turn(x, layers)), VECTOR


LINEAR = (hk_linear, linen_linear, nnx_linear, eqx_linear)
QUICK = (linen_scan, nnx_u_net)
SLOW = (
  eqx_batch_norm, eqx_convolutions, eqx_scan, eqx_unrolled, hk_resnet, hk_lstm, hk_layer_stack,
  linen_convolutions, linen_bidirectional, nnx_simple, nnx_lstm, nnx_scan,
)  # fmt: skip


@pytest.mark.first(3)
@pytest.mark.parametrize(
  "network", [*LINEAR, *QUICK, *(pytest.param(network, marks=pytest.mark.slow) for network in SLOW)]
)
def test_networks(network):
  fn, shape = network()
  upper = lambda x: lipjax.lipschitz_upper_bound(lambda x: fn(x))(x)
  # Gates make many small programs of few shapes: one large one takes longer to compile.
  upper = upper if shape[-2:] == ROWS else compiled(upper)
  upper = float(upper(jnp.zeros(shape, FLOAT)))
  found = steepest(fn, shape)
  assert 0 < found <= upper * (1 + 1e-5) < np.inf
  if network in LINEAR:
    assert upper == pytest.approx(found, rel=1e-4)


def test_the_same_weights_have_the_same_bound():
  ours = eqx.nn.MLP(6, 6, 6, 1, key=KEYS[0])
  layers = [nnx.Linear(*pair, rngs=nnx.Rngs(0)) for pair in ((6, 6), (6, 6))]
  for theirs, layer in zip(ours.layers, layers, strict=True):
    layer.kernel.set_value(theirs.weight.T)
    layer.bias.set_value(theirs.bias)
  model = Stack(lambda x, first, last: last(nnx.relu(first(x))), *layers)
  x = jnp.arange(6.0, dtype=FLOAT)
  np.testing.assert_allclose(model(x), ours(x), rtol=1e-4, atol=1e-5)
  upper = lambda fn: float(compiled(lipjax.lipschitz_upper_bound(lambda x: fn(x)))(x))
  assert upper(ours) == pytest.approx(upper(model), rel=1e-5)
