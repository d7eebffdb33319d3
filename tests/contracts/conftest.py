"""Every test with an argument `case` runs for every transformation of the registry.

Variants (the same code but for its arithmetic) run `OF_VARIANTS`; the others are marked slow for
them: ``pytest -m slow tests/contracts``.
"""

import pytest
from contracts.registry import CASES

#: Tests that see the arithmetic.
OF_VARIANTS = (
  "test_converges_to_the_proximal_point",
  "test_missing_params_raise",
  "test_schedule_counts_updates_from_zero",
  "test_values_do_not_depend_on_dtype",
)


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    runs = metafunc.function.__name__ in OF_VARIANTS
    marks = lambda case: pytest.mark.slow if case.variant and not runs else ()
    cases = [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES]
    metafunc.parametrize("case", cases)
