"""JAX and Hypothesis for the whole suite, set by environment before JAX starts.

- ``LIPJAX_TEST_DEVICES=8``: that many CPU devices (default 1, on which lipjax takes dot
  products; `contracts/test_eight_devices.py` runs the sharded tests in such a process).
- ``LIPJAX_TEST_X64=1``: 64-bit arrays by default.
- ``LIPJAX_TEST_SHARE=1/8``: the first of eight parts of the tests that are asked for; a test is
  always in the same part.
- ``LIPJAX_TEST_CACHE=folder``: keep compiled programs there; a second run is much faster.
- ``XLA_FLAGS``: the compiler's, as everywhere; where it is not set, programs are compiled fast
  instead of well, as most run once. ``XLA_FLAGS= pytest`` tests what users get.
- ``HYPOTHESIS_PROFILE``: ``ci`` (default), ``quick`` or ``thorough``.
- ``OPENBLAS_NUM_THREADS``: 1 where it is not set, as threads that wait for each other take up
  the other workers' cores. NumPy reads it when it is imported, here in the workers of xdist.
"""

import collections
import gc
import itertools
import os
import zlib
from pathlib import Path

from fast_compile import XLA_FLAGS

os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import settings

N_DEVICES = int(os.environ.get("LIPJAX_TEST_DEVICES", "1"))
if N_DEVICES > 1:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", N_DEVICES)
  # XLA has as many threads as there are cores, and an all-reduce keeps one until all devices have
  # come to theirs: with fewer threads than devices none is left for the last ones, and it aborts.
  os.environ.setdefault("NPROC", str(4 * N_DEVICES))
  jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_enable_x64", os.environ.get("LIPJAX_TEST_X64", "0") == "1")
if "LIPJAX_TEST_CACHE" in os.environ:
  jax.config.update("jax_compilation_cache_dir", os.environ["LIPJAX_TEST_CACHE"])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# An example's first run compiles, so its time says nothing.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=5)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_MAPS, _TESTS = Path("/proc/self/maps"), itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config, items):
  """Marks cases after the `first` ones `thorough`, and leaves the tests of one part."""
  n_seen = collections.Counter()
  for item in items:
    if first := item.get_closest_marker("first"):
      n_seen[item.path, item.originalname] += 1
      if n_seen[item.path, item.originalname] > first.args[0]:
        item.add_marker(pytest.mark.thorough)
  part, n_parts = map(int, os.environ.get("LIPJAX_TEST_SHARE", "1/1").split("/"))
  is_in = lambda item: zlib.crc32(item.nodeid.encode()) % n_parts == part % n_parts
  config.hook.pytest_deselected(items=[item for item in items if not is_in(item)])
  items[:] = filter(is_in, items)


def pytest_collection_finish():
  """What is imported stays: looking for garbage in it again and again took 5 % of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _not_too_many_programs():
  """Linux allows a process 65,530 memory maps; XLA needs some a program, and aborts there."""
  yield
  if next(_TESTS) % 16 == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()
