"""Every test with an argument `case` runs for every transformation of the registry.

Variants (the same code but for its arithmetic) run the tests of values; the others are marked
slow for them: ``pytest -m slow tests/contracts``.
"""

import pytest
from contracts.registry import CASES


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    values = metafunc.module.__name__.endswith("test_values")
    marks = lambda case: pytest.mark.slow if case.variant and not values else ()
    cases = [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES]
    metafunc.parametrize("case", cases)
