"""No bound is below a slope of programs that are made of primitives at random."""

import jax
import pytest
from certify.primitive_programs import BOX, run

BLOCK = 20


@pytest.mark.parametrize(("box", "n_programs", "n_bounds"), [(None, 10, 2), (BOX, 1, 0)])
def test_no_slope_is_above(box, n_programs, n_bounds):
  assert run(range(n_programs), box) >= n_bounds


@pytest.mark.slow
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("block", range(25))
def test_no_slope_is_above_in_many(block, box):
  run(range(BLOCK * block, BLOCK * (block + 1)), box)
  jax.clear_caches()
