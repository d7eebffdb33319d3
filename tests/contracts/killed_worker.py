"""A training that saves itself every step: ``killed_worker.py FOLDER DEVICES STEPS``."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lipjax


def start(devices):
  """Params on the mesh, and the state of decay before Adam and a ball behind it."""
  mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec("x"))
  keys = jax.random.split(jax.random.key(0), 2)
  shapes = {"a": (16, 24), "b": (24, 16)}
  params = {
    name: {"kernel": jax.device_put(jax.random.normal(key, shape), sharding)}
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  tx = optax.chain(
    lipjax.add_spectral_decay(0.1), optax.adam(1e-2), lipjax.keep_params_in_spectral_ball(6.0)
  )
  # Adam's counter lies on one device; restored, it would insist on that.
  everywhere = NamedSharding(mesh, PartitionSpec())
  is_placed = lambda x: isinstance(x.sharding, NamedSharding)
  state = jax.tree.map(
    lambda x: x if is_placed(x) else jax.device_put(x, everywhere), tx.init(params)
  )
  return tx, (params, state)


def main(folder, devices, n_steps):
  os.environ.setdefault("NPROC", "16")  # threads for all devices' all-reduces
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  tx, carry = start(devices)

  @jax.jit
  def step(carry, i):
    params, state = carry
    noise = lambda w: jax.random.normal(jax.random.fold_in(jax.random.key(1), i), w.shape)
    updates, state = tx.update(jax.tree.map(noise, params), state, params)
    return optax.apply_updates(params, updates), state

  with ocp.StandardCheckpointer() as checkpointer:
    # A save that was cut off has another name.
    done = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]
    if done:
      carry = checkpointer.restore(folder / str(max(done)), carry)
    for i in range(max(done, default=0), n_steps):
      carry = step(carry, jnp.int32(i))
      checkpointer.save(folder / str(i + 1), carry)
      checkpointer.wait_until_finished()
  leaves = [np.asarray(x) for x in jax.tree.leaves(carry)]
  np.savez(folder / "last.npz", *leaves)


if __name__ == "__main__":
  main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
