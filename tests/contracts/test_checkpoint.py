"""Saving and restoring in the middle of training changes no bit."""

import functools

import flax.serialization
import jax
import optax
import orbax.checkpoint as ocp
import pytest
from contracts.registry import CASES, assert_same_bits, params, types, updates


class Training:
  """A transformation in a chain with Adam, and its compiled step."""

  def __init__(self, case):
    self.tx = case.chain(optax.adam(0.05))

    self.n_traces = 0

    def one(p, state):
      self.n_traces += 1
      u, state = self.tx.update(updates(), state, p)
      return optax.apply_updates(p, u), state

    self.one = jax.jit(one)

  def run(self, n_steps, p, state):
    """Params and state after `n_steps` steps."""
    for _ in range(n_steps):
      p, state = self.one(p, state)
    return p, state

  def start(self):
    """Params and state before the first step."""
    return params(), self.tx.init(params())


@functools.cache
def training_of(name):
  """One for all tests of a case: its step is compiled once."""
  return Training(next(case for case in CASES if case.name == name))


def save_orbax(path, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path / "checkpoint", tree)
    checkpointer.wait_until_finished()


def restore_orbax(path, like):
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path / "checkpoint", like)


def save_pytree(path, tree):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path / "checkpoint", tree)


def restore_pytree(path, like):
  restore_args = ocp.checkpoint_utils.construct_restore_args(like)
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(path / "checkpoint", item=like, restore_args=restore_args)


def save_bytes(path, tree):
  (path / "checkpoint").write_bytes(flax.serialization.to_bytes(tree))


def restore_bytes(path, like):
  restored = flax.serialization.from_bytes(like, (path / "checkpoint").read_bytes())
  return jax.tree.map(jax.numpy.asarray, restored)


WAYS = {
  "standard": (save_orbax, restore_orbax),
  "pytree": (save_pytree, restore_pytree),
  "bytes": (save_bytes, restore_bytes),
}


@pytest.mark.first(3)
@pytest.mark.parametrize("way", WAYS)
def test_restored_training_continues_bit_for_bit(case, way, tmp_path):
  """Five steps, a checkpoint, five steps equal ten steps; no second trace."""
  save, restore = WAYS[way]
  training = training_of(case.name)
  n_before = training.n_traces
  straight = training.run(10, *training.start())
  n_traces = training.n_traces
  assert n_traces <= n_before + 1
  middle = training.run(5, *training.start())
  save(tmp_path, middle)
  # A new process knows shapes and dtypes only; values come from the file.
  like = training.start()
  restored = restore(tmp_path, like)
  assert_same_bits(restored, middle)
  assert types(restored) == types(middle)
  assert_same_bits(training.run(5, *restored), straight)
  assert training.n_traces == n_traces


def test_restored_into_abstract_state(case, tmp_path):
  """A restore target made by `jax.eval_shape`, without allocating."""
  training = training_of(case.name)
  middle = training.run(2, *training.start())
  save_orbax(tmp_path, middle)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    jax.eval_shape(training.start),
  )
  assert_same_bits(restore_orbax(tmp_path, abstract), middle)
