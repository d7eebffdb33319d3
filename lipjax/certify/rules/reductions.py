"""Sums, maxima and windows."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import Failure, LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import rule_for, size
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import moved, window_sum_norm


@rule_for("reduce_sum")
def reduce_sum(eqn: Any, x: Any) -> Any:
  """√terms."""
  terms = size(x.shape) // max(size(eqn.outvars[0].aval.shape), 1)
  apply = lambda x: jnp.sum(x, axis=eqn.params["axes"])
  part = LinearPart(apply, (lambda: math.sqrt(terms),), roundings=terms, magnitude=apply)
  return Node(eqn.outvars[0].aval, part, (x,))


@rule_for("reduce_max", "reduce_min")
def reduce_max(eqn: Any, x: Any) -> Any:
  """Slope 1."""
  return Node(eqn.outvars[0].aval, LipschitzPart((1.0,)), (x,))


@rule_for("sort")
def sort(eqn: Any, *operands: Any) -> Any:
  """Slope 1 of what is sorted. Of what is sorted along, if the keys are constants."""
  n_keys, axis = eqn.params["num_keys"], eqn.params["dimension"]
  keys = operands[:n_keys]
  if any(isinstance(x, Node) for x in keys):
    # The places of the sorted entries jump. Two sorted lists are no further apart than the
    # lists, and the first key is in order whatever the others are.
    failed = [Node(v.aval, Failure(_jumps(eqn))) for v in eqn.outvars]
    if not isinstance(keys[0], Node):
      return failed
    return [Node(eqn.outvars[0].aval, LipschitzPart((1.0,)), (keys[0],)), *failed[1:]]
  places = jax.lax.broadcasted_iota(np.int32, jnp.shape(keys[0]), axis)
  order = jax.lax.sort([*keys, places], axis, eqn.params["is_stable"], n_keys)[-1]
  pick = lambda x: jnp.take_along_axis(x, order, axis)
  picked = lambda v, x: Node(v.aval, moved(pick), (x,)) if isinstance(x, Node) else pick(x)
  return [picked(v, x) for v, x in zip(eqn.outvars, operands, strict=True)]


@rule_for("top_k")
def top_k(eqn: Any, x: Any) -> Any:
  """Slope 1 of the values, which are a part of the sorted list; the places jump."""
  values, places = eqn.outvars
  failure = Failure(_jumps(eqn))
  return [Node(values.aval, LipschitzPart((1.0,)), (x,)), Node(places.aval, failure)]


@rule_for("argmax", "argmin", "reduce_and", "reduce_or", "reduce_xor")
def jumps(eqn: Any, x: Any) -> Any:
  """None: it jumps, and raises if the result depends on it."""
  raise _jumps(eqn)


def _jumps(eqn: Any) -> CertifyError:
  return CertifyError(
    f"What {eqn.primitive.name!r} says{source_line(eqn)} of an array that depends on the input "
    "jumps, so that no slope bounds it."
  )


@rule_for("cumsum")
def cumsum(eqn: Any, x: Any) -> Any:
  """1/(2 sin(π/(4n + 2)))."""
  n = x.shape[eqn.params["axis"]]
  apply = lambda x: eqn.primitive.bind(x, **eqn.params)
  # The matrix of a cumulative sum has the inverse of a second difference for its Gram matrix.
  norm = (1 + 1e-6) / (2 * math.sin(math.pi / (4 * n + 2)))
  return Node(
    eqn.outvars[0].aval, LinearPart(apply, (lambda: norm,), roundings=n, magnitude=apply), (x,)
  )


@rule_for("cummax", "cummin", "cumlogsumexp")
def cummax(eqn: Any, x: Any) -> Any:
  """√n: none of n results moves further than the entry that moves furthest."""
  n = x.shape[eqn.params["axis"]]
  return Node(eqn.outvars[0].aval, LipschitzPart((math.sqrt(n),)), (x,))


@rule_for("reduce_window_sum")
def reduce_window_sum(eqn: Any, x: Any) -> Any:
  """√(entries of a window · windows of an entry)."""
  p = eqn.params
  apply = lambda x: eqn.primitive.bind(x, **p)
  norm = lambda: window_sum_norm(p["window_dimensions"], p["window_strides"], p["window_dilation"])
  terms = math.prod(p["window_dimensions"])
  return Node(
    eqn.outvars[0].aval, LinearPart(apply, (norm,), roundings=terms, magnitude=apply), (x,)
  )


@rule_for("reduce_window_max", "reduce_window_min")
def reduce_window_max(eqn: Any, x: Any) -> Any:
  """√(windows of an entry)."""
  p = eqn.params
  reads = math.prod(
    math.ceil(k / s) if d == 1 else k
    for k, s, d in zip(
      p["window_dimensions"], p["window_strides"], p["window_dilation"], strict=True
    )
  )
  return Node(eqn.outvars[0].aval, LipschitzPart((math.sqrt(reads),)), (x,))
