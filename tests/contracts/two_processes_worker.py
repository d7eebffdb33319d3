"""One process of `test_two_processes.py`: ``worker.py PROCESS COUNT PORT RESULT``."""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def start(process, count, port):
  """Joins `count` processes with four CPU devices in all; exits with 77 if that fails."""
  os.environ.setdefault("NPROC", "16")  # threads for all devices' all-reduces
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 4 // count)
  jax.config.update("jax_enable_x64", os.environ.get("LIPJAX_TEST_X64", "0") == "1")
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process, initialization_timeout=120)
  except Exception as error:
    print(f"jax.distributed.initialize: {error!r}", flush=True)
    os._exit(77)
  assert jax.device_count() == 4


def one_step():
  """Updates and state of every transformation after one sharded update."""
  from contracts.registry import CASES, normal

  mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  plain = np.asarray(normal(0, {"kernel": (8, 6)})["kernel"])
  sharding = NamedSharding(mesh, P("x", "y"))
  kernel = jax.make_array_from_callback(plain.shape, sharding, lambda index: plain[index])
  params = {"kernel": kernel}
  gather = lambda x: np.ravel(multihost_utils.process_allgather(x, tiled=True))
  found = {}
  for case in CASES:
    tx = case.build()
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    found[case.name] = gather(updates["kernel"])
    found |= {f"{case.name} state {i}": gather(x) for i, x in enumerate(jax.tree.leaves(state))}
  return found


if __name__ == "__main__":
  start(*(int(arg) for arg in sys.argv[1:4]))
  arrays = one_step()
  if sys.argv[1] == "0":
    np.savez(sys.argv[4], **arrays)
  jax.distributed.shutdown()
