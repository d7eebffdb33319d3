"""Sums, maxima and windows."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, LinearPart, LipschitzPart, Operand, Windows
from lipjax.certify.graph import Node
from lipjax.certify.linear import moved, window_sum_norm
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import record


@record("reduce_sum", range=ranges.sums, examples=[lambda x: x.sum(0), lambda x: x.sum()])
def reduce_sum(node: Node, x: Operand) -> Depends:
  """√terms."""
  terms = math.prod(x.shape) // max(node.size, 1)
  apply = lambda value: jnp.sum(value, axis=node.params["axes"])
  part = LinearPart(apply, (lambda: math.sqrt(terms),), roundings=terms, magnitude=apply)
  return Depends(part, (x.place,))


@record(
  "reduce_max", "reduce_min", range=ranges.monotone,
  examples=[lambda x: x.max(0), lambda x: x.min()],
)  # fmt: skip
def reduce_max(node: Node, x: Operand) -> Depends:
  """Slope 1."""
  del node
  return Depends(LipschitzPart((1.0,)), (x.place,))


@record(
  "sort", range=ranges.monotone,
  examples=[
    lambda x: jnp.sort(x, 0),
    lambda x: lax.sort((jnp.ones((2, 3)).cumsum(0), x), num_keys=1)[1],
  ],
)  # fmt: skip
def sort(node: Node, *operands: Operand) -> Depends:
  """Slope 1 of what is sorted. Of what is sorted along, if the keys are constants."""
  n_keys, axis = node.params["num_keys"], node.params["dimension"]
  keys = operands[:n_keys]
  if any(x.moves for x in keys):
    # The places of the sorted entries jump. Two sorted lists are no further apart than the
    # lists, and the first key is in order whatever the others are.
    if node.output or not keys[0].moves:
      raise _jumps(node)
    return Depends(LipschitzPart((1.0,)), (keys[0].place,))
  places = lax.broadcasted_iota(np.int32, keys[0].shape, axis)
  known = [jnp.asarray(x.value) for x in keys]
  order = lax.sort([*known, places], axis, node.params["is_stable"], n_keys)[-1]
  return Depends(
    moved(lambda x: jnp.take_along_axis(x, order, axis)), (operands[node.output].place,)
  )


@record("top_k", range=ranges.monotone, examples=[lambda x: lax.top_k(x, 2)[0]])
def top_k(node: Node, x: Operand) -> Depends:
  """Slope 1 of the values, which are a part of the sorted list; the places jump."""
  if node.output:
    raise _jumps(node)
  return Depends(LipschitzPart((1.0,)), (x.place,))


@record("argmax", "argmin", "reduce_and", "reduce_or", "reduce_xor")
def jumps(node: Node, x: Operand) -> Depends:
  """None: it jumps, and raises if the result depends on it."""
  del x
  raise _jumps(node)


def _jumps(node: Node) -> CertifyError:
  return CertifyError(
    f"What {node.name!r} says{node.line} of an array that depends on the input "
    "jumps, so that no slope bounds it."
  )


@record("cumsum", range=ranges.sums, examples=[lambda x: lax.cumsum(x, 1, reverse=True)])
def cumsum(node: Node, x: Operand) -> Depends:
  """1/(2 sin(π/(4n + 2)))."""
  n = x.shape[node.params["axis"]]
  # The matrix of a cumulative sum has the inverse of a second difference for its Gram matrix.
  norm = (1 + 1e-6) / (2 * math.sin(math.pi / (4 * n + 2)))
  part = LinearPart(node.bind, (lambda: norm,), roundings=n, magnitude=node.bind)
  return Depends(part, (x.place,))


@record(
  "cummax",
  "cummin",
  range=ranges.monotone,
  examples=[lambda x: lax.cummax(x, 1, reverse=True), lambda x: lax.cummin(x, 0)],
)
def cummax(node: Node, x: Operand) -> Depends:
  """√n: none of n results moves further than the entry that moves furthest."""
  return Depends(LipschitzPart((math.sqrt(x.shape[node.params["axis"]]),)), (x.place,))


@record(
  "cumlogsumexp", range=ranges.cumulative_log_sum_exp, examples=[lambda x: lax.cumlogsumexp(x, 1)]
)
def cumlogsumexp(node: Node, x: Operand) -> Depends:
  """√n: none of n results moves further than the entry that moves furthest."""
  return cummax(node, x)


@record(
  "reduce_window_sum", range=ranges.sums,
  examples=[lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "SAME")],
)  # fmt: skip
def reduce_window_sum(node: Node, x: Operand) -> Depends:
  """√(entries of a window · windows of an entry)."""
  p = node.params
  norm = lambda: window_sum_norm(p["window_dimensions"], p["window_strides"], p["window_dilation"])
  terms = math.prod(p["window_dimensions"])
  windows = _windows(node)
  part = LinearPart(node.bind, (norm,), roundings=terms, magnitude=node.bind, on_images=windows)
  return Depends(part, (x.place,))


def _windows(node: Node) -> Windows | None:
  p = node.params
  if any(d != 1 for d in p["base_dilation"]):
    return None
  names = "window_dimensions", "window_strides", "padding", "window_dilation"
  return Windows(*(tuple(p[name]) for name in names))


@record(
  "reduce_window_max", "reduce_window_min", range=ranges.monotone,
  examples=[
    lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 1), "VALID"),
    lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2), (1, 1), "SAME"),
  ],
)  # fmt: skip
def reduce_window_max(node: Node, x: Operand) -> Depends:
  """√(windows of an entry)."""
  p = node.params
  windows = zip(p["window_dimensions"], p["window_strides"], p["window_dilation"], strict=True)
  reads = math.prod(math.ceil(k / s) if d == 1 else k for k, s, d in windows)
  return Depends(LipschitzPart((math.sqrt(reads),), on_images=_windows(node)), (x.place,))


def _reads(node: Node) -> int:
  """How many windows read an entry at most."""
  p = node.params
  pairs = zip(p["window_dimensions"], p["window_strides"], strict=True)
  return math.prod(math.ceil(k / s) for k, s in pairs)


@record("select_and_scatter_add")
def select_and_scatter_add(node: Node, source: Operand, operand: Operand) -> Depends:
  """√(windows of an entry): the gradient of a max pool, at entries that are constants."""
  if operand.moves:
    raise _jumps(node)
  apply = lambda x: node.bind(x, jnp.asarray(operand.value, x.dtype))
  norm = math.sqrt(_reads(node)) * (1 + 1e-6)
  part = LinearPart(apply, (lambda: norm,), roundings=_reads(node), magnitude=apply)
  return Depends(part, (source.place,))
