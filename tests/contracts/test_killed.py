"""kill -9 in the middle of training, and on from the last checkpoint: bit for bit."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
STEPS = 8


def worker(folder, devices):
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, str(HERE / "killed_worker.py"), str(folder), str(devices), str(STEPS)]
  return subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output


@pytest.mark.thorough
@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, devices):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  for folder in (straight, killed):
    folder.mkdir()
  process = worker(killed, devices)
  for _ in range(3000):
    if (killed / "3").exists() or process.poll() is not None:
      break
    time.sleep(0.1)
  process.kill()  # SIGKILL: no handler runs
  process.communicate()
  assert (killed / "3").exists()
  assert not (killed / "last.npz").exists()
  finish(worker(killed, devices))
  finish(worker(straight, devices))
  with np.load(straight / "last.npz") as expected, np.load(killed / "last.npz") as found:
    assert expected.files == found.files
    for name in expected.files:
      assert expected[name].tobytes() == found[name].tobytes()
