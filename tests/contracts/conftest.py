"""Every test with an argument `case` runs for every transformation of the registry.

Variants of one transformation run the tests of values alone.
"""

from contracts.registry import CASES


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    all_of_them = metafunc.module.__name__.endswith("test_values")
    cases = [case for case in CASES if all_of_them or not case.variant]
    metafunc.parametrize("case", cases, ids=lambda case: case.name)
