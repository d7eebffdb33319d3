"""Every test with an argument `case` runs for every transformation of the registry."""

from contracts.registry import CASES


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    metafunc.parametrize("case", CASES, ids=lambda case: case.name)
