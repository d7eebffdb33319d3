r"""Activation functions of `jax.nn` with known slopes, told by their graphs.

The graphs are traced from the installed JAX, so they follow its way of writing a function,
and are compared node by node: a function's name says nothing.

The slopes are those of exact real functions. The non-trivial ones, found and proved by
bisection (`lipjax.certify.scalar.search`; the tests do it again), are rounded outward in the eighth
decimal, which also covers constants rounded to float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.scalar.graph import COMMUTATIVE, Graph
from lipjax.certify.scalar.tracing import graph_of

#: Stands for a parameter where a function is traced; exact in every dtype, met nowhere else.
_HOLE = 0.7109375


class Entry(NamedTuple):
  """A known function.

  Attributes:
    fn: the function of x, or of x and a parameter.
    slopes: smallest and largest slope for a value of the parameter, which is 0 if there is
      none; None for values to which they do not apply.
    is_rounded: whether the slopes depend on constants that bfloat16 and float16 round.
  """

  fn: Callable[..., jax.Array]
  slopes: Callable[[float], tuple[float, float] | None]
  is_rounded: bool = False


def _always(lower: float, upper: float):
  return lambda parameter: (lower, upper)


def _elu(alpha: float):
  # α eˣ lies between 0 and α for x < 0.
  return min(alpha, 0.0), max(alpha, 1.0)


ENTRIES: dict[str, tuple[Entry, bool]] = {}


def _enter(name: str, fn, slopes, *, has_parameter: bool = False, is_rounded: bool = False):
  ENTRIES[name] = Entry(fn, slopes, is_rounded), has_parameter


_enter("identity", lambda x: x, _always(1, 1))
_enter("relu", jax.nn.relu, _always(0, 1))
_enter("relu6", jax.nn.relu6, _always(0, 1))
_enter("softplus", jax.nn.softplus, _always(0, 1))
_enter("log_sigmoid", jax.nn.log_sigmoid, _always(0, 1))
_enter("soft_sign", jax.nn.soft_sign, _always(0, 1))
_enter("tanh", jnp.tanh, _always(0, 1))
_enter("hard_tanh", jax.nn.hard_tanh, _always(0, 1))
_enter("logistic", lax.logistic, _always(0, 0.25))
_enter("hard_sigmoid", jax.nn.hard_sigmoid, _always(0, math.nextafter(1 / 6, 1)))
_enter("hard_silu", jax.nn.hard_silu, _always(-0.5, 1.5))
_enter("sparse_plus", jax.nn.sparse_plus, _always(0, 1))
_enter("sparse_sigmoid", jax.nn.sparse_sigmoid, _always(0, 0.5))
_enter("silu", jax.nn.silu, _always(-0.09983933, 1.09983933))
_enter("mish", jax.nn.mish, _always(-0.11252613, 1.08849817))
_enter("gelu", functools.partial(jax.nn.gelu, approximate=False), _always(-0.12890415, 1.12890415))
_enter("gelu_tanh", jax.nn.gelu, _always(-0.12899307, 1.12899307), is_rounded=True)
_enter("selu", jax.nn.selu, _always(0, 1.75809935), is_rounded=True)
_enter("elu", jax.nn.elu, _elu, has_parameter=True)
_enter("celu", jax.nn.celu, lambda a: (0.0, 1.0) if a > 0 else None, has_parameter=True)
_enter("leaky_relu", jax.nn.leaky_relu, lambda a: (min(1, a), max(1, a)), has_parameter=True)
_enter(
  "squareplus", jax.nn.squareplus, lambda b: (0.0, 1.0) if b >= 0 else None, has_parameter=True
)
_enter("erf", lax.erf, _always(0, math.nextafter(2 / math.sqrt(math.pi), 2)))
_enter("sin", jnp.sin, _always(-1, 1))
_enter("cos", jnp.cos, _always(-1, 1))
_enter("atan", jnp.arctan, _always(0, 1))


def known_slopes(graph: Graph, dtype) -> tuple[str, float, float] | None:
  """The name of a graph's function in the table and its slopes on the line, if it is there."""
  is_wide = jnp.finfo(dtype).bits >= 32
  # How JAX writes a function depends on its dtype, and on whether there are 64-bit numbers.
  for name, reference in _references(jnp.dtype(dtype), bool(jax.config.read("jax_enable_x64"))):
    entry, _ = ENTRIES[name]
    parameter = match(reference, graph)
    if parameter is not None and (is_wide or not entry.is_rounded):
      slopes = entry.slopes(parameter)
      if slopes is not None and all(map(math.isfinite, slopes)):
        return name, float(slopes[0]), float(slopes[1])
  return None


@functools.lru_cache
def _references(dtype, has_x64: bool) -> list[tuple[str, Graph]]:
  del has_x64
  graphs = []
  for name, (entry, has_parameter) in ENTRIES.items():
    fn = functools.partial(_with_hole, entry.fn) if has_parameter else entry.fn
    graphs.append((name, graph_of(fn, dtype)))
  return graphs


def _with_hole(fn, x):
  return fn(x, _HOLE)


def match(reference: Graph, graph: Graph) -> float | None:
  """The parameter with which a reference is the graph; 0 if it has none, None if it differs."""
  ends = len(reference.nodes) - 1, graph, len(graph.nodes) - 1
  return next((found or 0.0 for found in _match(reference, *ends, None)), None)


def _match(reference: Graph, i: int, graph: Graph, j: int, parameter: float | None):
  """Yield each value of the parameter with which node i of the reference is node j.

  None stands for any value, before the parameter is met.
  """
  left, right = reference.nodes[i], graph.nodes[j]
  if left.name == right.name == "constant" and left.parameter == _HOLE:
    if parameter is None or parameter == right.parameter:
      yield right.parameter
    return
  if (left.name, left.parameter) != (right.name, right.parameter) or left.name == "unknown":
    return
  orders = [right.inputs]
  if left.name in COMMUTATIVE:
    orders.append(right.inputs[::-1])
  for order in orders:
    yield from _match_all(reference, left.inputs, graph, order, parameter)


def _match_all(reference: Graph, left, graph: Graph, right, parameter: float | None):
  if len(left) != len(right):
    return
  if not left:
    yield parameter
    return
  for found in _match(reference, left[0], graph, right[0], parameter):
    yield from _match_all(reference, left[1:], graph, right[1:], found)
