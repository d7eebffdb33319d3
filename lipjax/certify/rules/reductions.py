"""Sums, maxima and windows."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from lipjax.certify.errors import CertifyError
from lipjax.certify.graph import LinearPart, LipschitzPart, Node
from lipjax.certify.interpreter import rule_for, size
from lipjax.certify.jaxprs import source_line
from lipjax.certify.linear_parts import window_sum_norm


@rule_for("reduce_sum")
def reduce_sum(eqn: Any, x: Any) -> Any:
  """√terms."""
  terms = size(x.shape) // max(size(eqn.outvars[0].aval.shape), 1)
  apply = lambda x: jnp.sum(x, axis=eqn.params["axes"])
  part = LinearPart(apply, (lambda: math.sqrt(terms),), roundings=terms, magnitude=apply)
  return Node(eqn.outvars[0].aval, part, (x,), recipe=("reduce_sum", eqn.params, (x,)))


@rule_for("reduce_max", "reduce_min")
def reduce_max(eqn: Any, x: Any) -> Any:
  """Slope 1."""
  recipe = ("reduce_max", eqn.params, (x,))
  return Node(eqn.outvars[0].aval, LipschitzPart((1.0,)), (x,), recipe=recipe)


@rule_for("sort")
def sort(eqn: Any, *operands: Any) -> Any:
  """Slope 1."""
  if len(operands) != 1:
    msg = f"A sort of several arrays at once{source_line(eqn)} has no rule."
    raise CertifyError(msg)
  return [Node(eqn.outvars[0].aval, LipschitzPart((1.0,)), operands)]


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


@rule_for("cummax", "cummin")
def cummax(eqn: Any, x: Any) -> Any:
  """√n."""
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
