"""Primitives that move, copy or leave out entries."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Node
from lipjax.certify.interpreter import rule_for, size
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import merged, moved


@rule_for(
  "copy",
  "optimization_barrier",
  "reduce_precision",
  "reshape",
  "rev",
  "sharding_constraint",
  "slice",
  "squeeze",
  "transpose",
)
def isometry(eqn: Any, x: Any) -> Any:
  """Entries are moved or left out: slope 1."""
  recipe = (eqn.primitive.name, eqn.params, (x,))
  return Node(eqn.outvars[0].aval, moved(_only(eqn)), (x,), recipe=recipe)


@rule_for("stop_gradient")
def stop_gradient(eqn: Any, x: Any) -> Any:
  """The value still depends on the input: slope 1, not 0."""
  return x


@rule_for("convert_element_type")
def convert_element_type(eqn: Any, x: Any) -> Any:
  """Slope 1 between floating-point types; to others it has jumps."""
  if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
    why = "has jumps, so that no slope bounds it"
    if jnp.issubdtype(eqn.params["new_dtype"], jnp.complexfloating):
      why = "leads to complex numbers (as before an fft), which have no rules"
    msg = f"A conversion to {eqn.params['new_dtype']}{source_line(eqn)} {why}."
    raise CertifyError(msg)
  # Rounding to fewer bits is taken for the identity, like all rounding of the function.
  dtype = eqn.params["new_dtype"]
  node = x if x.aval.dtype == dtype else None
  cast = lambda value: value.astype(dtype)
  return node or Node(eqn.outvars[0].aval, moved(cast), (x,), link=(x, lambda value: value))


@rule_for("broadcast_in_dim")
def broadcast_in_dim(eqn: Any, x: Any) -> Any:
  """√copies."""
  copies = size(eqn.outvars[0].aval.shape) / max(size(x.shape), 1)
  recipe = (eqn.primitive.name, eqn.params, (x,))
  part = moved(_only(eqn), copies)
  return Node(eqn.outvars[0].aval, part, (x,), recipe=recipe)


@rule_for("pad")
def pad(eqn: Any, x: Any, value: Any) -> Any:
  """Slope 1."""
  if isinstance(x, Node) and isinstance(value, Node):
    msg = "Padding with a value that depends on the input."
    raise CertifyError(msg)
  if isinstance(value, Node):
    n = size(eqn.outvars[0].aval.shape)
    fill = lambda v: lax.pad(
      jnp.zeros(jnp.shape(x), value.aval.dtype), v, eqn.params["padding_config"]
    )
    return Node(eqn.outvars[0].aval, moved(fill, n), (value,))
  zeros = lambda x: lax.pad(x, jnp.zeros((), x.dtype), eqn.params["padding_config"])
  return Node(eqn.outvars[0].aval, moved(zeros), (x,))


@rule_for("concatenate")
def concatenate(eqn: Any, *operands: Any) -> Any:
  """√(sum of the squares of its parts)."""
  join = lambda *values: eqn.primitive.bind(*values, **eqn.params)
  return merged(eqn.outvars[0].aval, join, operands)


@rule_for("split")
def split(eqn: Any, x: Any) -> Any:
  """Slope 1."""
  pieces = [
    functools.partial(lambda i, x: eqn.primitive.bind(x, **eqn.params)[i], i)
    for i in range(len(eqn.outvars))
  ]
  return [Node(v.aval, moved(p), (x,)) for v, p in zip(eqn.outvars, pieces, strict=True)]


@rule_for("dynamic_slice")
def dynamic_slice(eqn: Any, x: Any, *starts: Any) -> Any:
  """Slope 1, at a place that is a constant."""
  _must_be_constant(eqn, starts)
  return Node(
    eqn.outvars[0].aval, moved(lambda x: eqn.primitive.bind(x, *starts, **eqn.params)), (x,)
  )


@rule_for("dynamic_update_slice")
def dynamic_update_slice(eqn: Any, x: Any, update: Any, *starts: Any) -> Any:
  """√(sum of the squares of both arrays), at a place that is a constant."""
  _must_be_constant(eqn, starts)
  write = lambda x, update: eqn.primitive.bind(x, update, *starts, **eqn.params)
  return merged(eqn.outvars[0].aval, write, (x, update))


@rule_for("gather")
def gather(eqn: Any, x: Any, indices: Any) -> Any:
  """√(how often an entry is taken), at places that are constants."""
  _must_be_constant(eqn, [indices])
  aval = eqn.outvars[0].aval
  apply = lambda x: eqn.primitive.bind(x, indices, **eqn.params)
  if isinstance(indices, Tracer):
    return Node(aval, moved(apply, max(size(aval.shape), 1)), (x,))
  with jax.ensure_compile_time_eval():
    places = np.asarray(apply(jnp.arange(1, 1 + size(x.shape)).reshape(x.shape)))
  # Places out of bounds are filled with a constant, which counts as one more entry.
  copies = np.unique(places, return_counts=True)[1].max(initial=1)
  return Node(aval, moved(apply, int(copies)), (x,))


def _only(eqn: Any) -> Any:
  return lambda x: eqn.primitive.bind(x, **eqn.params)


def _must_be_constant(eqn: Any, indices: Any) -> Any:
  if any(isinstance(index, Node) for index in indices):
    msg = f"{eqn.primitive.name!r} at a place that depends on the input has jumps."
    raise CertifyError(msg)
