"""No bound is below a slope that a random program has somewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certify.programs import programs
from hypothesis import HealthCheck, given, settings

from lipjax.certify.lipschitz import bounds_by_engine

SCALES = (0.0, 0.1, 1.0, 10.0)


def steepest(fn, shape, seed=0):
  """The largest norm of the Jacobian at a few points."""
  noise = jax.random.normal(jax.random.key(seed), (3, *shape))
  points = jnp.concatenate([scale * noise for scale in SCALES])
  flat = lambda x: fn(x).ravel()
  jacobians = jax.jit(jax.vmap(jax.jacrev(flat)))(points)
  matrices = np.asarray(jacobians, np.float64).reshape((*jacobians.shape[:2], -1))
  return np.linalg.svd(matrices, compute_uv=False)[:, 0].max()


def check(program):
  fn, shape = program
  found = steepest(fn, shape)
  for name, upper in bounds_by_engine(fn, 0, (jnp.zeros(shape),)).items():
    assert found <= float(upper) * (1 + 1e-5), name


SETTINGS = {
  "deadline": None,
  "suppress_health_check": list(HealthCheck),
  "derandomize": True,
  "database": None,
}


def check_on_balls(program):
  fn, shape = program
  x = jax.random.normal(jax.random.key(1), shape)
  for radius in (1e-2, 1.0):
    away = jax.random.normal(jax.random.key(2), (8, *shape))
    lengths = jnp.linalg.norm(away.reshape((8, -1)), axis=1)
    shares = radius * jnp.linspace(0, 1, 8) / lengths
    points = x + away * shares.reshape((8, *[1] * len(shape)))
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda x: fn(x).ravel())))(points)
    matrices = np.asarray(jacobians, np.float64).reshape((*jacobians.shape[:2], -1))
    found = np.linalg.svd(matrices, compute_uv=False)[:, 0].max()
    for name, upper in bounds_by_engine(fn, 0, (x,), radius).items():
      assert found <= float(upper) * (1 + 1e-5), (name, radius)


@pytest.mark.thorough
@settings(max_examples=4, **SETTINGS)
@given(programs())
def test_no_slope_is_above(program):
  check(program)


@pytest.mark.thorough
@settings(max_examples=2, **SETTINGS)
@given(programs())
def test_no_slope_in_a_ball_is_above(program):
  check_on_balls(program)


@pytest.mark.slow
@settings(max_examples=400, **SETTINGS)
@given(programs())
def test_no_slope_is_above_in_many(program):
  check(program)


@pytest.mark.slow
@settings(max_examples=300, **SETTINGS)
@given(programs())
def test_no_slope_in_a_ball_is_above_in_many(program):
  check_on_balls(program)
