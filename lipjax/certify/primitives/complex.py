"""Complex arrays, as real ones with a first axis of real and imaginary parts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.errors import CertifyError
from lipjax.certify.facts import Depends, Facts, LinearPart, Operand, Range
from lipjax.certify.graph import Node, Params
from lipjax.certify.norms import Norm
from lipjax.certify.primitives import ranges
from lipjax.certify.primitives.record import RECORDS, RangeRule, record
from lipjax.certify.primitives.two import of_two
from lipjax.measure.gram import gram_upper_bound
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import norm_above, tiny


def _whole(pair: jax.Array) -> jax.Array:
  return jax.lax.complex(pair[0], pair[1])


def _parts(value: jax.Array) -> jax.Array:
  return jnp.stack([jnp.real(value), jnp.imag(value)])


# ---- what is done to both parts alike ----


def _range_of_both(node: Node, *known: Range) -> Range | None:
  inner, is_pair = node.params["of"], node.params["is_pair"]
  rule = RECORDS[inner.name].range
  of_part = lambda k: [
    Range(x.lower[k], x.upper[k]) if pair else x for x, pair in zip(known, is_pair, strict=True)
  ]
  found = [None if rule is None else rule(_filled(inner, k), *of_part(k)) for k in range(2)]
  if None in found:
    return None
  return Range(*(jnp.stack(ends) for ends in zip(*cast("list[Range]", found), strict=True)))


def _filled(node: Node, k: int) -> Node:
  """With a part of the number that a gather fills in."""
  whole = node.params.get("fill_value")
  if whole is None:
    return node
  part = float(np.imag(whole) if k else np.real(whole))
  return node._replace(params=Params({**node.params, "fill_value": part}))


@record("of_both", range=_range_of_both, examples=[lambda x: jnp.abs(jnp.fft.fft(x).T.sum(0)[1:])])
def of_both(node: Node, *operands: Operand) -> Depends:
  """As of a real array: real and imaginary parts do not meet."""
  inner, pairs = node.params["of"], zip(operands, node.params["is_pair"], strict=True)
  of_part = [_of_part(x) if is_pair else x for x, is_pair in pairs]
  depends = RECORDS[inner.name].transfer(inner._replace(line=node.line), *of_part)
  part = cast("LinearPart", depends.part)
  magnitude = None if part.magnitude is None else jax.vmap(part.magnitude)
  both = {"apply": jax.vmap(part.apply), "magnitude": magnitude, "weight": None}
  return depends._replace(part=dataclasses.replace(part, **both))


def _of_part(x: Operand) -> Operand:
  """A part of a complex array, of which nothing more is known."""
  return x._replace(node=x.node._replace(shape=x.shape[1:]), facts=Facts(), sharper=None)


# ---- Fourier transforms ----


def _transform(node: Node) -> Callable[[jax.Array], jax.Array]:
  """The primitive from real arrays to real arrays."""
  kind = node.params["fft_type"].name
  before = _whole if kind != "RFFT" else lambda x: x
  after = _parts if kind != "IRFFT" else lambda x: x
  params = {key: value for key, value in node.params.items() if key}
  return lambda x: after(node.primitive.bind(before(x), **params))


def _terms(node: Node) -> int:
  return math.prod(node.params["fft_lengths"])


def _fft_range(node: Node, x: Range) -> Range:
  kind, n = node.params["fft_type"].name, _terms(node)
  middle, apply = x.lower / 2 + x.upper / 2, _transform(node)
  radius = up(jnp.maximum(x.upper - middle, middle - x.lower), 2)
  axes = tuple(range(-len(node.params["fft_lengths"]), 0))
  # A part of a sum of complex numbers times units, twice where half of them is left out.
  total = lambda size: jnp.sum(size, axes, keepdims=True)
  sizes = total(radius), total(jnp.abs(middle))
  if kind != "RFFT":
    sizes = [jnp.sum(size, 0, keepdims=True) for size in sizes]
  factor = {"FFT": 1.0, "RFFT": 1.0, "IFFT": 1 / n, "IRFFT": 2 / n}[kind]
  far, size = (up(factor * part, 2 * n + 8) for part in sizes)
  if kind == "RFFT":
    far, size = far[None], size[None]
  if kind == "IRFFT":
    far, size = far[0], size[0]
  value = apply(middle)
  lost = 8 * (n + 16) * unit_roundoff(value.dtype) * (size + far)
  return ranges.widened(value - far, value + far, lost + n * tiny(value.dtype))


@record(
  "fft",
  range=_fft_range,
  examples=[
    lambda x: jnp.abs(jnp.fft.fft(x)),
    lambda x: jnp.fft.ifft2(jnp.fft.fft2(x)).real,
    lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=0)[:, 1:], axis=0, n=2),
  ],
)
def fft(node: Node, x: Operand) -> Depends:
  """√n for n entries, 1/√n for the inverse, and √2/√n for that from half of the spectrum."""
  kind, n = node.params["fft_type"].name, _terms(node)
  size = {"FFT": n, "RFFT": n, "IFFT": 1 / n, "IRFFT": 2 / n}[kind]
  norm = math.sqrt(size) * (1 + 1e-6)
  return Depends(LinearPart(_transform(node), (lambda: norm,), roundings=8 * n + 64), (x.place,))


# ---- products ----


def _product(apply: Callable[..., Any]) -> Callable[..., jax.Array]:
  return lambda a, b: _parts(apply(_whole(a), _whole(b)))


def _product_range(apply: Callable[..., Any]) -> RangeRule:
  """Real and imaginary parts of products, from the ranges of both factors' parts."""

  def rule(node: Node, a: Range, b: Range) -> Range:
    middles = [x.lower / 2 + x.upper / 2 for x in (a, b)]
    radii = [
      up(jnp.maximum(x.upper - m, m - x.lower), 2) for x, m in zip((a, b), middles, strict=True)
    ]
    # Sizes of complex numbers: at most the sum of those of their parts.
    sizes = [jnp.sum(jnp.abs(m), 0) for m in middles]
    away = [jnp.sum(radius, 0) for radius in radii]
    bind = functools.partial(apply, node)
    value = _product(bind)(*middles)
    far = bind(sizes[0], away[1]) + bind(away[0], sizes[1] + away[1])
    terms = 4 * (math.prod(jnp.shape(a.lower)) + 8)
    lost = terms * unit_roundoff(value.dtype) * (bind(*sizes) + far)
    return ranges.widened(value - up(far, terms), value + up(far, terms), lost)

  return rule


def _multiply(node: Node, a: jax.Array, b: jax.Array) -> jax.Array:
  del node
  return a * b


def _dot(node: Node, a: jax.Array, b: jax.Array) -> jax.Array:
  dimensions = node.params["dimension_numbers"]
  return jax.lax.dot_general(a, b, dimensions, precision=jax.lax.Precision.HIGHEST)


@record(
  "complex_mul",
  range=_product_range(_multiply),
  examples=[lambda x: jnp.fft.ifft(jnp.fft.fft(x) * (1 + 2j)).real],
)
def complex_mul(node: Node, a: Operand, b: Operand) -> Depends:
  """With a constant: its largest magnitude. Of two bounded arrays as of real ones."""
  if a.moves and b.moves:
    return _of_two(node, (a, b), _multiply, 4)
  x, factor = (a, b) if a.moves else (b, a)
  c = jnp.asarray(factor.value, x.node.wide)
  norm = functools.cache(lambda: up(jnp.max(norm_above(c, 0), initial=0), 8))
  apply = lambda x: jnp.stack([c[0] * x[0] - c[1] * x[1], c[0] * x[1] + c[1] * x[0]])
  part = LinearPart(apply, (norm,), roundings=16, magnitude=_magnitude(jnp.abs(c)))
  return Depends(part, (x.place,))


def _magnitude(c: jax.Array) -> Callable[[jax.Array], jax.Array]:
  return lambda x: jnp.stack([c[0] * x[0] + c[1] * x[1], c[0] * x[1] + c[1] * x[0]])


@record(
  "complex_dot_general",
  range=_product_range(_dot),
  examples=[lambda x: jnp.abs(jnp.fft.fft(x) @ (jnp.arange(6.0).reshape((3, 2)) + 1j))],
)
def complex_dot_general(node: Node, a: Operand, b: Operand) -> Depends:
  """With a constant: the norm of its complex matrix, the largest of a batch."""
  if a.moves and b.moves:
    terms = math.prod(a.shape[1 + i] for i in node.params["dimension_numbers"][0][0])
    return _of_two(node, (a, b), _dot, 4 * terms)
  x, weight, side = (a, b, 1) if a.moves else (b, a, 0)
  dimensions = node.params["dimension_numbers"]
  contract, batch = dimensions[0][side], dimensions[1][side]
  w = jnp.asarray(weight.value, x.node.wide)
  free = [i for i in range(w.ndim - 1) if i not in (*contract, *batch)]
  order = [0, *(1 + i for i in (*batch, *free, *contract))]
  rows, columns = (math.prod(w.shape[1 + i] for i in axes) for axes in (free, contract))
  matrix = jnp.transpose(w, order).reshape((2, -1, rows, columns))
  given = lambda x: (x, w) if a.moves else (w, x)
  apply = lambda x: _product(functools.partial(_dot, node))(*given(x))
  norm = Norm(_matrix_norm, matrix, rounded=lambda sigma: sigma)
  part = LinearPart(apply, (norm,), roundings=4 * max(rows, columns) + 8)
  return Depends(part, (x.place,))


def _matrix_norm(matrix: jax.Array) -> jax.Array:
  return jnp.max(gram_upper_bound(matrix[0], matrix[1]), initial=0)


def _of_two(node: Node, pair: Sequence[Operand], apply: Callable[..., Any], terms: int) -> Depends:
  """A product of two bounded arrays: each one's slope times the other's norm, added."""
  if any(x.range is None for x in pair):
    msg = (
      f"A product of two complex arrays that depend on the input{node.line} is not Lipschitz: its"
      " slope grows with them. Give a radius around the input, or a box."
    )
    raise CertifyError(msg)
  sizes = [jnp.sum(cast("Range", x.range).size(), 0) for x in pair]
  entrywise = apply is _multiply
  bound = lambda size: jnp.max(size, initial=0) if entrywise else norm_above(size)
  constants = [up(bound(size), size.size + 16) for size in sizes[::-1]]
  part = of_two(pair, constants, _product(functools.partial(apply, node)), terms)
  return Depends(part, tuple(x.place for x in pair))
