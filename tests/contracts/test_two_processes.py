"""A sharded update over two processes: what a cluster does, on one machine."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from contracts.registry import assert_close

WORKER = pathlib.Path(__file__).with_name("two_processes_worker.py")


def free_port():
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def run_workers(count, result):
  """The arrays that `count` processes with four devices in all come to."""
  port = free_port()
  path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
  workers = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(process), str(count), str(port), str(result)],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=os.environ | {"PYTHONPATH": path},
    )
    for process in range(count)
  ]
  try:
    outputs = [worker.communicate(timeout=400)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  if any(worker.returncode == 77 for worker in workers):
    pytest.skip("jax.distributed cannot be initialized here: " + "".join(outputs)[-500:])
  assert [worker.returncode for worker in workers] == [0] * count, "\n".join(outputs)[-8000:]
  with np.load(result) as found:
    return dict(found)


@pytest.mark.thorough
def test_two_processes_equal_one(tmp_path):
  """One update of every transformation: two processes of two devices, and one of four."""
  two = run_workers(2, tmp_path / "two.npz")
  assert_close(two, run_workers(1, tmp_path / "one.npz"))
