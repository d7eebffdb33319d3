"""No bound is below a slope of programs that are made of primitives at random."""

import jax
import jax.numpy as jnp
import pytest
from certify.primitive_programs import BOX, run

BLOCK = 20


@pytest.mark.first(1)
@pytest.mark.parametrize(
  ("box", "dtype", "n_programs", "n_cases", "n_bounds"),
  [
    (None, jnp.bfloat16, 4, 1, 1),
    (None, jnp.float32, 8, 1, 3),
    (None, jnp.float16, 2, 8, 8),
    (BOX, jnp.float32, 2, 1, 1),
  ],
)
def test_no_slope_is_above(box, dtype, n_programs, n_cases, n_bounds):
  assert run(range(n_programs), box, dtype, n_cases) >= n_bounds


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("block", range(25))
def test_no_slope_is_above_in_many(block, box, dtype):
  run(range(BLOCK * block, BLOCK * (block + 1)), box, dtype)
  jax.clear_caches()
