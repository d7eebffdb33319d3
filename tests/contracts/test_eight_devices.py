"""Runs `sharded/` in two processes of their own with eight CPU devices."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from marks import thorough

HERE = pathlib.Path(__file__).parent
FILES = sorted(HERE.glob("sharded/test_*.py"))


@pytest.mark.parametrize("chosen", ["not slow and not thorough", thorough("thorough and not slow")])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.skipif(jax.device_count() > 1, reason="sharded/ is collected in this process itself")
def test_sharded_suite_passes_on_eight_devices(half, chosen):
  """Points 11, 12, 16 and 22. lipjax's products differ by the number of devices.

  In halves, which two cores run at once.
  """
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
  environment = os.environ | {"LIPJAX_TEST_DEVICES": "8"}
  environment.pop("PYTEST_ADDOPTS", None)
  done = subprocess.run(
    [*command, "-m", chosen, *map(str, FILES[half::2])],
    cwd=HERE.parents[1],
    env=environment,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
  assert "skipped" not in done.stdout.splitlines()[-1]
