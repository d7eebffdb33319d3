"""Parameters of tests that the default run leaves out and `.ci/run` has."""

import pytest


def thorough(value):
  """One of many cases, of which another one is in the default run."""
  return pytest.param(value, marks=pytest.mark.thorough)
