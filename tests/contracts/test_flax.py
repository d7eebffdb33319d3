"""Under Flax's optimizer and parameter boxes on one device: points 16 and 17."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from contracts.registry import assert_close, normal, run, step, types, updates_like
from flax import nnx


class Net(nnx.Module):
  """Two layers and a normalization."""

  def __init__(self, rngs):
    self.first = nnx.Linear(4, 3, rngs=rngs)
    self.norm = nnx.LayerNorm(3, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])


@pytest.mark.first(2)
def test_nnx_optimizer_equals_the_plain_update(case):
  """Point 16: `nnx.Optimizer`, eager and under `nnx.jit`, gives optax's own params."""
  tx = case.chain(optax.sgd(0.1))
  for wrap in (lambda f: f, nnx.jit):
    model = Net(nnx.Rngs(0))
    plain = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = updates_like(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    train = wrap(lambda model, optimizer, grads: optimizer.update(model, grads))
    for _ in range(2):
      train(model, optimizer, grads)
    _, expected, _ = run(tx, plain, 2, nnx.to_pure_dict(grads))
    actual = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(actual, expected)


def test_nnx_optimizer_does_not_retrace(case):
  """Point 16: the optimizer's state has the same types before and after an update."""
  model = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, case.build(), wrt=nnx.Param)
  grads = updates_like(nnx.state(model, nnx.Param))
  before = types(nnx.as_pure(nnx.state(optimizer)))
  n_traces = 0

  @nnx.jit
  def train(model, optimizer, grads):
    nonlocal n_traces
    n_traces += 1
    optimizer.update(model, grads)

  for _ in range(3):
    train(model, optimizer, grads)
  assert n_traces == 1
  assert types(nnx.as_pure(nnx.state(optimizer))) == before


class Boxed(nn.Module):
  """A linen net whose kernels carry axis names."""

  @nn.compact
  def __call__(self, x):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    x = nn.LayerNorm()(nn.Dense(3, kernel_init=init)(x))
    return nn.Dense(2, kernel_init=init)(x)


def test_linen_partitioned_params(case):
  """Point 17: boxed params give the boxed updates and the state of the unboxed."""
  boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
  assert isinstance(boxed["Dense_0"]["kernel"], nn.Partitioned)
  grads = jax.tree.map(lambda p: 0.1 * p, boxed)
  tx, plain, plain_grads = case.build(), nn.unbox(boxed), nn.unbox(grads)
  u, state = step(tx, grads, tx.init(boxed), boxed)
  assert jax.tree.structure(u) == jax.tree.structure(boxed)
  v, expected = step(tx, plain_grads, tx.init(plain), plain)
  assert_close((nn.unbox(u), state), (v, expected))


def test_state_moves_between_boxed_and_plain_params(case):
  """Point 17: a state made with boxes continues without them (as after `nn.unbox`)."""
  boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
  tx, plain = case.build(), nn.unbox(boxed)
  grads = normal(1, plain)
  assert_close(run(tx, plain, 1, grads, tx.init(boxed)), run(tx, plain, 1, grads))


def test_partition_spec_of_the_state(case):
  """Point 17: no part of our state inherits a kernel's axis names."""
  boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
  specs = nn.get_partition_spec(jax.eval_shape(case.build().init, boxed))
  is_spec = lambda node: isinstance(node, jax.sharding.PartitionSpec)
  assert not any(any(spec) for spec in jax.tree.leaves(specs, is_leaf=is_spec))
