"""Primitives that move, copy or leave out entries."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from lipjax.certify import without_rules
from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import evaluate, rule_for, size
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import merged, moved
from lipjax.certify.scatter_apply import has_function, written_out
from lipjax.measure.rounding import up
from lipjax.operators.products import compute_dtype


@rule_for("reshape", "rev", "slice", "squeeze", "transpose")
def isometry(eqn: Any, x: Any) -> Any:
  """Entries are moved or left out: slope 1."""
  return Node(eqn.outvars[0].aval, moved(_only(eqn)), (x,))


@rule_for("copy", "name", "sharding_constraint", "stop_gradient")
def same(eqn: Any, x: Any) -> Any:
  """The same array, rounding apart: slope 1, also of ``stop_gradient``, whose value moves."""
  return x


@rule_for("reduce_precision")
def reduce_precision(eqn: Any, x: Any) -> Any:
  """Slope 1 down to the bits of a floating-point type of 16; with fewer it is a quantizer."""
  bits = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
  if not any(bits[0] >= e and bits[1] >= m for e, m in ((5, 10), (8, 7))):
    msg = (
      f"reduce_precision to {bits[0]} bits of exponent and {bits[1]} of mantissa"
      f"{source_line(eqn)} is a quantizer: it jumps, so that no slope bounds it. Bound the "
      "function before it."
    )
    raise CertifyError(msg)
  return x


@rule_for("device_put", "optimization_barrier")
def same_arrays(eqn: Any, *operands: Any) -> Any:
  """The same arrays: slope 1."""
  return list(operands)


@rule_for("convert_element_type")
def convert_element_type(eqn: Any, x: Any) -> Any:
  """Slope 1 between floating-point types; to others it has jumps."""
  if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
    why = "has jumps, so that no slope bounds it"
    if jnp.issubdtype(eqn.params["new_dtype"], jnp.complexfloating):
      why = "leads to complex numbers (as before an fft), which have no rules"
    msg = f"A conversion to {eqn.params['new_dtype']}{source_line(eqn)} {why}."
    raise CertifyError(msg)
  dtype = eqn.params["new_dtype"]
  if jnp.dtype(dtype).itemsize < 2 or jnp.dtype(x.aval.dtype).itemsize < 2:
    msg = (
      f"A conversion from {x.aval.dtype} to {dtype}{source_line(eqn)} is a quantizer: it jumps, "
      "so that no slope bounds it. Bound the function with that number in 16 bits or more."
    )
    raise CertifyError(msg)
  # Rounding to fewer bits is taken for the identity, like all rounding of the function; but
  # bounds are computed in 32 bits at least, and a matrix of a bound does round.
  if x.aval.dtype == dtype:
    return x
  before, after = compute_dtype(x.aval.dtype), compute_dtype(dtype)
  part = moved(lambda value: value.astype(after))
  if before != after:
    part = dataclasses.replace(part, roundings=1)
  return Node(eqn.outvars[0].aval, part, (x,), link=(x, lambda value: value.astype(dtype)))


@rule_for("broadcast_in_dim", "tile")
def broadcast_in_dim(eqn: Any, x: Any) -> Any:
  """√(copies of an entry)."""
  copies = size(eqn.outvars[0].aval.shape) / max(size(x.shape), 1)
  return Node(eqn.outvars[0].aval, moved(_only(eqn), copies), (x,))


@rule_for("pad")
def pad(eqn: Any, x: Any, value: Any) -> Any:
  """Slope 1; √(entries that are filled in) of the value that fills them."""
  aval, pad = eqn.outvars[0].aval, functools.partial(lax.pad, **eqn.params)
  spread = lambda x: pad(x, jnp.zeros((), x.dtype))
  if not isinstance(value, Node):
    return Node(aval, moved(spread), (x,))
  # Not by `pad`, which has no transpose for the value alone.
  is_filled = np.asarray(_now(lambda: pad(jnp.zeros(jnp.shape(x), bool), True)))
  fill = moved(lambda value: jnp.where(is_filled, value, 0), is_filled.sum())
  if not isinstance(x, Node):
    return Node(aval, fill, (value,))
  both = lambda x, value: spread(x) + fill.apply(value)
  norms = (lambda: 1.0, *fill.norms)
  part = dataclasses.replace(fill, apply=both, magnitude=both, norms=norms, is_disjoint=True)
  return Node(aval, part, (x, value))


@rule_for("concatenate", "stack")
def concatenate(eqn: Any, *operands: Any) -> Any:
  """√(sum of the squares of its parts)."""
  is_stack = eqn.primitive.name == "stack"
  axis = eqn.params["axis" if is_stack else "dimension"]
  # Not the primitives, as bounds are computed in a wider dtype than some constants have.
  join = jnp.stack if is_stack else jnp.concatenate
  return merged(eqn.outvars[0].aval, lambda *values: join(values, axis=axis), operands)


@rule_for("split", "unstack")
def split(eqn: Any, x: Any) -> Any:
  """Slope 1 of each piece."""
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

  def write(x: Any, update: Any) -> Any:
    x, update = _promoted((x, update))
    return lax.dynamic_update_slice(x, update, starts)

  return merged(eqn.outvars[0].aval, write, (x, update))


@rule_for("gather")
def gather(eqn: Any, x: Any, indices: Any) -> Any:
  """√(how often an entry is taken), at places that are constants."""
  _must_be_constant(eqn, [indices])
  # Places out of bounds are filled with a constant: 0 in a linear map.
  take = lambda x: eqn.primitive.bind(x, indices, **{**eqn.params, "fill_value": 0})

  def most_copies() -> Any:
    n = size(x.shape)
    places = take(jnp.arange(1, 1 + n).reshape(x.shape))
    copies = jnp.zeros(n + 1, jnp.int32).at[places.ravel()].add(1)
    return jnp.max(copies[1:], initial=0)

  aval = eqn.outvars[0].aval
  windows = size(jnp.shape(indices)[:-1])
  return Node(aval, _copied(moved(take, windows), most_copies, [indices], 0), (x,))


@rule_for("scatter")
def scatter(eqn: Any, x: Any, indices: Any, updates: Any) -> Any:
  """√(sum of the squares of both arrays), at places that are constants."""
  _must_be_constant(eqn, [indices])
  if has_function(eqn):
    return _applied(eqn, x, indices, updates)
  n, n_updates = size(jnp.shape(x)), size(jnp.shape(updates))
  olds = np.arange(n, dtype=np.int32).reshape(jnp.shape(x))
  news = np.arange(n, n + n_updates, dtype=np.int32).reshape(jnp.shape(updates))

  # A scatter onto the same place twice has no transpose, its entries' places have.
  def write(x: Any, updates: Any) -> Any:
    places = _scatter(eqn, lax.scatter)(olds, indices, news)
    return jnp.concatenate([x.ravel(), updates.ravel()])[places]

  return merged(eqn.outvars[0].aval, write, (x, updates))


def _applied(eqn: Any, x: Any, *constants: Any) -> Any:
  if not isinstance(x, Node) or any(isinstance(y, Node) for y in constants):
    msg = f"A scatter with a function of its own{source_line(eqn)}, of updates that move, has no"
    msg = f"{msg} rule. Write x.at[places].apply(f), or set(f(x[places], updates))."
    raise CertifyError(msg)
  fn = written_out(eqn, without_rules.evaluate)
  return evaluate(jax.make_jaxpr(lambda value: fn(value, *constants))(x.aval), [x])[0]


@rule_for("scatter-add", "scatter-sub")
def scatter_add(eqn: Any, x: Any, indices: Any, updates: Any) -> Any:
  """Slope 1, plus √(most updates of one entry) of these, at places that are constants."""
  _must_be_constant(eqn, [indices])
  sign = -1 if eqn.primitive.name == "scatter-sub" else 1
  add = _scatter(eqn, lax.scatter_add)

  def most_updates() -> Any:
    ones = jnp.ones(jnp.shape(updates), jnp.int32)
    return jnp.max(add(jnp.zeros(jnp.shape(x), jnp.int32), indices, ones), initial=0)

  def linear(sign: int) -> Any:
    def apply(*values: Any) -> Any:
      left = iter(values)
      both = [next(left) if isinstance(y, Node) else jnp.zeros_like(y) for y in (x, updates)]
      x_value, update = _promoted(both)
      return add(x_value, indices, sign * update)

    return apply

  parents = tuple(y for y in (x, updates) if isinstance(y, Node))
  if not isinstance(updates, Node):
    return Node(eqn.outvars[0].aval, moved(lambda x: x), parents)
  windows = size(jnp.shape(indices)[:-1])
  norms = ((lambda: 1.0),) * len(parents)
  part = LinearPart(linear(sign), norms, roundings=windows + 1, magnitude=linear(1))
  return Node(
    eqn.outvars[0].aval, _copied(part, most_updates, [indices], len(parents) - 1), parents
  )


@rule_for("scatter-max", "scatter-min")
def scatter_max(eqn: Any, x: Any, indices: Any, updates: Any) -> Any:
  """√(sum of the squares of both arrays), at places that are constants."""
  _must_be_constant(eqn, [indices])
  # A maximum moves at most as far as the one of its terms that moves furthest, and every
  # update is a term of at most one of them.
  parents = tuple(y for y in (x, updates) if isinstance(y, Node))
  return Node(eqn.outvars[0].aval, LipschitzPart((1.0,) * len(parents)), parents)


def _promoted(values: Any) -> Any:
  dtype = jnp.result_type(*values)
  return [value.astype(dtype) for value in values]


def _scatter(eqn: Any, function: Any) -> Any:
  """A scattering function with an equation's places, for arrays of any dtype."""
  p = eqn.params
  return lambda x, *others: function(
    jnp.asarray(x), *others, p["dimension_numbers"], mode=p["mode"]
  )


def _copied(part: LinearPart, count: Any, constants: Any, i: int) -> LinearPart:
  """The linear part with the norm √count() of its i-th operand, known now or traced."""
  if any(isinstance(constant, Tracer) for constant in constants):
    norm = functools.cache(lambda: up(jnp.sqrt(jnp.asarray(count(), jnp.float32)), 2))
  else:
    copies = int(_now(count))
    value = math.sqrt(copies) * (1 + 1e-6) if copies > 1 else float(copies)
    norm = lambda: value
    part = dataclasses.replace(part, roundings=copies + i if copies + i > 1 else 0)
  return dataclasses.replace(part, norms=(*part.norms[:i], norm, *part.norms[i + 1 :]))


def _now(compute: Any) -> Any:
  with jax.ensure_compile_time_eval():
    return compute()


def _only(eqn: Any) -> Any:
  return lambda x: eqn.primitive.bind(x, **eqn.params)


def _must_be_constant(eqn: Any, indices: Any) -> Any:
  if any(isinstance(index, Node) for index in indices):
    msg = f"{eqn.primitive.name!r} at a place that depends on the input has jumps"
    msg = f"{msg}{source_line(eqn)}."
    raise CertifyError(msg)
