"""Primitives that move, copy or leave out entries."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Channels, Depends, LinearPart, Operand
from lipjax.certify.graph import Node, Params
from lipjax.certify.index_map import is_quantizer
from lipjax.certify.linear import merged, moved, same
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import record


@record(
  "reshape", "rev", "squeeze", "transpose", "unstack", range=ranges.monotone,
  examples=[
    lambda x: lax.reshape(x, (6,), dimensions=(1, 0)), lambda x: lax.rev(x, (1,)),
    lambda x: x.T, lambda x: x[:1, None].squeeze(0), lambda x: jnp.unstack(x)[1],
  ],
)  # fmt: skip
def isometry(node: Node, x: Operand) -> Depends:
  """Entries are moved, or left out: slope 1."""
  return Depends(moved(node.bind), (x.place,))


@record("slice", range=ranges.monotone, examples=[lambda x: x[:, ::2], lambda x: x[1:, 1:]])
def cut(node: Node, x: Operand) -> Depends:
  """Entries are left out: slope 1."""
  axes = [axis for axis, n in enumerate(node.shape) if n != x.shape[axis]]
  if len(axes) != 1:
    return Depends(moved(node.bind), (x.place,))
  (axis,) = axes
  start, strides = node.params["start_indices"][axis], node.params["strides"]
  step = 1 if strides is None else strides[axis]
  return Depends(_of_channels(node, x, axis, start, step), (x.place,))


def _of_channels(node: Node, x: Operand, axis: int, start: int, step: int = 1) -> LinearPart:
  """From one of them on as many as there are in the result."""
  places = np.full(x.shape[axis], -1)
  n = node.shape[axis]
  places[start : start + n * step : step] = np.arange(n)
  return dataclasses.replace(moved(node.bind), on_images=Channels(axis, (places,)))


@record("reduce_precision")
def reduce_precision(node: Node, x: Operand) -> Depends:
  """Slope 1 down to the bits of a floating-point type of 16; with fewer it is a quantizer."""
  del x
  bits = node.params["exponent_bits"], node.params["mantissa_bits"]
  msg = (
    f"reduce_precision to {bits[0]} bits of exponent and {bits[1]} of mantissa"
    f"{node.line} is a quantizer: it jumps, so that no slope bounds it. Bound the "
    "function before it."
  )
  raise CertifyError(msg)


@record(
  "convert_element_type", range=ranges.same,
  examples=[lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) @ jnp.ones((3, 2))],
)  # fmt: skip
def convert_element_type(node: Node, x: Operand) -> Depends:
  """Slope 1 between floating-point types; to others it has jumps."""
  if not node.is_float or not x.node.is_float:
    which = x.node.dtype if node.is_float else node.dtype
    why = "has jumps, so that no slope bounds it"
    if jnp.issubdtype(which, jnp.complexfloating):
      why = "of complex numbers has no rule: use jnp.real, jnp.imag or jnp.abs"
    msg = f"A conversion from {x.node.dtype} to {node.dtype}{node.line} {why}."
    raise CertifyError(msg)
  if is_quantizer(node, x.node):
    msg = (
      f"A conversion from {x.node.dtype} to {node.dtype}{node.line} is a quantizer: it jumps, "
      "so that no slope bounds it. Bound the function with that number in 16 bits or more."
    )
    raise CertifyError(msg)
  # Rounding to fewer bits is taken for the identity, like all rounding of the function; but
  # bounds are computed in 32 bits at least, and a matrix of a bound does round.
  before, after = x.node.wide, node.wide
  part = same(lambda value: value.astype(after))
  if before != after:
    part = dataclasses.replace(part, roundings=1)
  return Depends(part, (x.place,))


@record(
  "broadcast_in_dim", "tile", range=ranges.monotone,
  examples=[lambda x: jnp.broadcast_to(x, (4, 2, 3)), lambda x: jnp.tile(x, 2)],
)  # fmt: skip
def broadcast_in_dim(node: Node, x: Operand) -> Depends:
  """√(copies of an entry)."""
  copies = node.size / max(math.prod(x.shape), 1)
  return Depends(moved(node.bind, copies), (x.place,))


@record(
  "pad", range=ranges.monotone,
  examples=[
    lambda x: lax.pad(x, 0.5, [(1, 0, 0), (-1, 2, 1)]),
    lambda x: lax.pad(x, x[0, 0], [(1, 2, 0), (0, 0, 1)]),
  ],
)  # fmt: skip
def pad(node: Node, x: Operand, value: Operand) -> Depends:
  """Slope 1; √(entries that are filled in) of the value that fills them."""
  config = node.params["padding_config"]
  spread = lambda x: lax.pad(x, jnp.zeros((), x.dtype), config)
  if not value.moves:
    return Depends(moved(spread), (x.place,))
  # Not by `pad`, which has no transpose for the value alone.
  with jax.ensure_compile_time_eval():
    is_filled = np.asarray(lax.pad(jnp.zeros(x.shape, bool), True, config))
  fill = moved(lambda value: jnp.where(is_filled, value, 0), is_filled.sum())
  if not x.moves:
    return Depends(fill, (value.place,))
  both = lambda x, value: spread(x) + fill.apply(value)
  norms = (lambda: 1.0, *fill.norms)
  part = dataclasses.replace(fill, apply=both, magnitude=both, norms=norms, is_disjoint=True)
  return Depends(part, (x.place, value.place))


@record(
  "concatenate", "stack", range=ranges.monotone,
  examples=[lambda x: jnp.concatenate([x, x, jnp.ones((1, 3))]), lambda x: jnp.stack([x, x], 2)],
)  # fmt: skip
def concatenate(node: Node, *operands: Operand) -> Depends:
  """√(sum of the squares of its parts)."""
  is_stack = node.name == "stack"
  axis = node.params["axis" if is_stack else "dimension"]
  # Not the primitives, as bounds are computed in a wider dtype than some constants have.
  join = jnp.stack if is_stack else jnp.concatenate
  depends = merged(lambda *values: join(values, axis=axis), operands)
  if is_stack:
    return depends
  ends = itertools.accumulate(x.shape[axis] for x in operands)
  pairs = zip(operands, ends, strict=True)
  places = tuple(np.arange(end - x.shape[axis], end) for x, end in pairs if x.moves)
  part = dataclasses.replace(cast("LinearPart", depends.part), on_images=Channels(axis, places))
  return depends._replace(part=part)


@record("split", range=ranges.monotone, examples=[lambda x: jnp.split(x, [1], 1)[1]])
def split(node: Node, x: Operand) -> Depends:
  """Slope 1 of each piece."""
  start = sum(node.params["sizes"][: node.output])
  return Depends(_of_channels(node, x, node.params["axis"], start), (x.place,))


@record(
  "dynamic_slice", range=ranges.monotone,
  examples=[
    lambda x: lax.dynamic_slice(x, (1, -1), (1, 2)), lambda x: lax.dynamic_slice(x, (0, 5), (2, 2)),
  ],
)  # fmt: skip
def dynamic_slice(node: Node, x: Operand, *starts: Operand) -> Depends:
  """Slope 1, at a place that is a constant."""
  at = constants_of(node, starts)
  return Depends(moved(lambda value: node.bind(value, *at)), (x.place,))


@record(
  "dynamic_update_slice", range=ranges.monotone,
  examples=[lambda x: lax.dynamic_update_slice(x, 3 * x[:1, :2], (1, 5))],
)  # fmt: skip
def dynamic_update_slice(node: Node, x: Operand, update: Operand, *starts: Operand) -> Depends:
  """√(sum of the squares of both arrays), at a place that is a constant."""
  at = constants_of(node, starts)
  return merged(lambda x, update: lax.dynamic_update_slice(x, update, at), (x, update))


@record(
  "gather", range=ranges.monotone,
  examples=[
    lambda x: x[np.array([0, 1, 1, -1])], lambda x: x[:, np.array([[0, 2], [1, 0]])],
    lambda x: x.at[np.array([0, 5])].get(mode="fill", fill_value=9.0),
    lambda x: x.at[np.array([1, 5])].get(mode="clip"),
    lambda x: x[np.array([0, 1]), np.array([2, 2])],
  ],
)  # fmt: skip
def gather(node: Node, x: Operand, indices: Operand) -> Depends:
  """√(how often an entry is taken), at places that are constants."""
  (at,) = constants_of(node, [indices])
  # Places out of bounds are filled with a constant: 0 in a linear map.
  node = node._replace(params=Params({**node.params, "fill_value": 0}))
  take = lambda value: node.bind(value, at)

  def most_copies() -> Any:
    n = math.prod(x.shape)
    places = take(jnp.arange(1, 1 + n).reshape(x.shape))
    copies = jnp.zeros(n + 1, jnp.int32).at[places.ravel()].add(1)
    return jnp.max(copies[1:], initial=0)

  windows = math.prod(indices.shape[:-1])
  part = copied(moved(take, windows), most_copies, indices, 0)
  return Depends(part, (x.place,))


def copied(part: LinearPart, count: Any, indices: Operand, i: int) -> LinearPart:
  """The linear part with the norm √count() of its i-th operand, known now or traced."""
  if indices.node.name != "static":
    norm = functools.cache(lambda: jnp.sqrt(jnp.asarray(count(), jnp.float32)) * (1 + 1e-6))
  else:
    with jax.ensure_compile_time_eval():
      copies = int(count())
    value = math.sqrt(copies) * (1 + 1e-6) if copies > 1 else float(copies)
    norm = lambda: value
    part = dataclasses.replace(part, roundings=copies + i if copies + i > 1 else 0)
  return dataclasses.replace(part, norms=(*part.norms[:i], norm, *part.norms[i + 1 :]))


def constants_of(node: Node, indices: Any) -> list[Any]:
  """The values of indices, or of starts, which must not depend on the input."""
  if any(index.moves for index in indices):
    msg = f"{node.name!r} at a place that depends on the input has jumps"
    msg = f"{msg}{node.line}."
    raise CertifyError(msg)
  return [index.value for index in indices]
