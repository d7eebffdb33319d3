"""Programs as people write them have the bounds that the documentation's table says."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT

import lipjax

_SPEC = importlib.util.spec_from_file_location(
  "lipjax_programs_table", Path(__file__).parents[2] / "docs" / "programs_table.py"
)
table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(table)

#: Bounds that are known to be looser than the steepest slope, and by how much at most.
LOOSE = {"clamp(-|y|, x, |y|)": 1.23, "jnp.cumprod(x)": 1.1, "arctan2(y, x)": 1.42}
QUICK = 4  # every so many-th one by default


@pytest.mark.parametrize(
  "program",
  [
    pytest.param(program, id=program.text, marks=[pytest.mark.slow] * (i % QUICK > 0))
    for i, program in enumerate(table.PROGRAMS)
  ],
)
def test_bounds(program):
  upper = table.bound(program)
  assert program.slope * (1 - 1e-4) <= upper
  assert upper <= program.slope * LOOSE.get(program.text, 1.002)
  rng = np.random.default_rng(0)
  low, high = program.box or (-3.0, 3.0)
  points = jnp.asarray(rng.uniform(low, high, (64, *program.shape)), FLOAT)
  ends = jnp.clip(points + rng.uniform(-0.05, 0.05, points.shape), low, high)
  value = jax.jit(jax.vmap(lambda x: jnp.ravel(program.fn(x))))
  moved = np.linalg.norm(value(ends) - value(points), axis=-1)
  apart = np.linalg.norm((ends - points).reshape((64, -1)), axis=-1)
  assert np.all(moved <= upper * apart * (1 + 1e-4) + 1e-5)


FAIL = {
  "a kernel that moves": (lambda x: jnp.convolve(x, x), "kernel depends on the input"),
  "a matrix that moves": (lambda x: jnp.linalg.solve(jnp.diag(x), x), "matrix that depends"),
  "exp of complex numbers": (lambda x: jnp.exp(jnp.fft.fft(x)).real, "'exp' of complex numbers"),
  "a norm without epsilon": (lambda x: x / jnp.linalg.norm(x), "Add a positive number"),
  "an angle everywhere": (lambda x: jnp.arctan2(x, x[::-1]), "radius or a box"),
  "a product everywhere": (jnp.prod, "radius around the input, or a box"),
  "the gradient of a max pool": (
    jax.grad(lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), "VALID").sum()),
    "jumps",
  ),
}


@pytest.mark.parametrize("name", FAIL)
def test_what_has_no_bound_says_what_to_write(name):
  fn, what = FAIL[name]
  with pytest.raises(lipjax.CertifyError, match=what):
    lipjax.lipschitz_upper_bound(fn)(jnp.zeros(4))
