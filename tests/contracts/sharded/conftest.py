"""Skips this folder on one device, and gives its tests their meshes."""

import jax
import pytest
from jax.sharding import AxisType
from marks import thorough


def pytest_collection_modifyitems(items):
  skip = pytest.mark.skip(reason="needs LIPJAX_TEST_DEVICES=8; test_eight_devices.py runs it so")
  for item in items:
    if "sharded" in item.path.parts and jax.device_count() < 8:
      item.add_marker(skip)


@pytest.fixture(params=["auto", "explicit", thorough("explicit_without_set_mesh")])
def mesh(request):
  """A 4×2 mesh of each axis type; explicit ones with and without `jax.set_mesh`."""
  kind = AxisType.Auto if request.param == "auto" else AxisType.Explicit
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
  if request.param == "explicit":
    with jax.set_mesh(mesh):
      yield mesh
  else:
    yield mesh
