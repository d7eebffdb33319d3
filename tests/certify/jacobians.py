"""Slopes that functions have somewhere, of all entries at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from reference import FLOAT

SCALES = (0.0, 0.1, 1.0, 10.0, 100.0)


def compiled(fn):
  """What takes long is compiling, not running."""
  return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def steepest(fn, shape, jacobian=jax.jacrev):
  """The largest norm of the Jacobian at points of several sizes."""
  noise = np.random.default_rng(0).standard_normal((len(SCALES), *shape))
  points = jnp.asarray(noise * np.reshape(SCALES, (-1,) + (1,) * len(shape)), FLOAT)
  slope = jacobian(lambda x: fn(x).ravel())
  dense = np.asarray(compiled(lambda xs: lax.map(slope, xs))(points), np.float64)
  return max(np.linalg.norm(m.reshape((m.shape[0], -1)), 2) for m in dense)
