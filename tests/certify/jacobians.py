"""Slopes that functions have somewhere, of all entries at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from reference import FLOAT

from lipjax.certify.reading.scatter_apply import has_function, written_out
from lipjax.jaxprs.inline import bind, inline

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


def widened(closed, args):
  """A traced function computed in the widest floats, with the constants that it says.

  Without anybody's rules for derivatives, and with scatters written out that have none.
  """
  return [_wide(x) for x in inline(closed).run(list(map(_wide, args)), _apply)]


def _apply(eqn, operands):
  operands = list(map(_wide, operands))
  if eqn.primitive is primitives.stop_gradient_p:
    return operands
  if eqn.primitive is primitives.scatter_p and has_function(eqn):
    return [written_out(eqn, _apply)(*operands)]
  is_program = lambda param: hasattr(param, "eqns") and hasattr(param, "consts")
  params = jax.tree.map(_wide_param, dict(eqn.params), is_leaf=is_program)
  return bind(eqn._replace(params=params), operands)


def _wide(x):
  """In float64 where there is such a thing."""
  dtype = jnp.result_type(x)
  widest = _widest(dtype)
  return x if widest == dtype else jnp.asarray(x, widest)


def _widest(dtype):
  kinds = ((jnp.floating, jnp.float64), (jnp.complexfloating, jnp.complex128))
  for kind, widest in kinds:
    if jnp.issubdtype(dtype, kind):
      return jax.dtypes.canonicalize_dtype(widest)
  return dtype


def _wide_param(param):
  if isinstance(param, (np.dtype, type)) and jnp.issubdtype(param, jnp.floating):
    return _widest(param)
  if not hasattr(param, "eqns"):
    return param
  like = [jax.ShapeDtypeStruct(x.shape, _widest(x.dtype)) for x in param.in_avals]
  return jax.make_jaxpr(lambda *args: widened(param, args))(*like)
