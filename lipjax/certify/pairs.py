"""Lipschitz bounds of the differences of two logits, for all pairs of classes at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.bounds.blocks import block_bounds
from lipjax.certify.bounds.effort import Effort, check_effort, steps_for
from lipjax.certify.bounds.ellipsoid import ellipsoid_bound
from lipjax.certify.bounds.ellipsoid_pairs import ellipsoid_pairs
from lipjax.certify.bounds.graph import liplt_bounds
from lipjax.certify.bounds.graph_layers import layers_of
from lipjax.certify.bounds.layers import Layers
from lipjax.certify.compiled import on_arrays
from lipjax.certify.facts import Facts, LinearPart
from lipjax.certify.graph import Graph
from lipjax.certify.maps import (
  ROWS_UP_TO,
  Known,
  Way,
  backward,
  is_source,
  live,
  norms_of,
  of_source,
  rows_at,
  rows_back,
)
from lipjax.certify.matrix import Rows
from lipjax.certify.norms import compute_norms
from lipjax.measure.gram import gram_upper_bound
from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import up
from lipjax.rounding.numbers import flushed, times_above


def margin_upper_bounds(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  effort: Effort = "default",
) -> Callable[..., jax.Array]:
  r"""A function of the same arguments that bounds how fast the logits of `fn` part.

  .. math::
    |(f_i - f_j)(x) - (f_i - f_j)(y)| \le L_{ij}\,\|x - y\|_2 \quad\text{for all } x, y

  which is what `certified_radius` divides the margin between i and j by. From one constant
  L of all logits follows :math:`L_{ij}=\sqrt2L`; but in the linear maps from anything to
  the logits, class i is one row :math:`a_i`, so :math:`\|a_i-a_j\|` is exact for the pair.
  `lipschitz_upper_bound`'s engines are used with such norms, and :math:`\sqrt2L` where
  that is smaller.

  **Cost.** About one `lipschitz_upper_bound`, and n²m operations for n classes and a map from
  m entries. A map with more than 1024 classes or 2²² numbers is not looked at: there a pair
  counts as √2 times its norm. One ellipsoid does for all pairs; with ``effort="tight"`` each
  pair has its own, which costs as much for each as a bound does.

  Guarantee: upper bounds, under the conditions of `lipschitz_upper_bound`, rounding in
  computing them included; at most √2 times its bound, but for rounding.

  Args:
    fn: any JAX function whose result is one array of the logits of one example: (classes,),
      or with axes of length 1 before the classes.
    argnums: the argument that moves, or the arguments.
    radius: as in `lipschitz_upper_bound`; a radius that follows from the result is then
      certified up to this one only.
    box: likewise.
    effort: likewise.

  Returns:
    A function of `fn`'s arguments with an array (classes, classes), float32 or wider,
    symmetric, with zeros on the diagonal. Without a radius only shapes and dtypes count of
    the arguments at `argnums`. Differentiable in the other arguments; under ``jax.jit`` too.

  Raises:
    ValueError: results that are not one array, or logits of several examples.
    CertifyError: as `lipschitz_upper_bound`.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> def net(params, x):
    ...   return params @ jax.nn.relu(x)
    >>> params = jnp.array([[4.0, 1.0], [4.0, -1.0], [-4.0, 0.0]])
    >>> x = jnp.array([1.0, 1.0])
    >>> pairs = lipjax.margin_upper_bounds(net, argnums=1)(params, x)
    >>> print(pairs.round(3))  # classes 0 and 1 part slowly
    [[0.    2.    8.062]
     [2.    0.    8.062]
     [8.062 8.062 0.   ]]
    >>> upper = lipjax.lipschitz_upper_bound(net, argnums=1)(params, x)
    >>> for bound in (upper, pairs):
    ...   print(f"{lipjax.certified_radius(net(params, x), bound):.3f}")
    0.204
    1.000

  Reference:
    Rows of the last layer: Tsuzuku et al. (2018), arXiv:1802.04034, section 5; the engines:
    see `lipschitz_upper_bound`.
  """

  def bounds(*args: Any) -> jax.Array:
    pairs = of_pairs(effort, fn, argnums, args, radius, box, functools.partial(_finished, effort))
    return jnp.where(jnp.eye(len(pairs), dtype=bool), 0, pairs)

  check_effort(effort)
  return bounds


def of_pairs(
  effort: Effort,
  fn: Callable[..., Any],
  argnums: int | Sequence[int],
  args: Sequence[Any],
  radius: Any | None,
  box: tuple[Any, Any] | None,
  then: Callable[[tuple[jax.Array, Layers | None]], Any],
) -> Any:
  """What is made of bounds by norms for all pairs, and layers for better ones."""
  logits = lambda *args: logits_of(fn(*args))
  found = on_arrays(_pairs(effort), logits, argnums, args, radius, box, then)
  if found is not None:
    return found[1]
  # They do not depend on what moves.
  flat = jax.eval_shape(lambda: logits(*args))
  return then((jnp.zeros((flat.size, flat.size), compute_dtype(flat.dtype)), None))


# The same function for the same effort: it is a part of the key of compiled programs.
@functools.cache
def _pairs(effort: Effort) -> Callable[[Graph, list[Facts]], tuple[jax.Array, Layers | None]]:
  def pairs(graph: Graph, facts: list[Facts]) -> tuple[jax.Array, Layers | None]:
    """For all pairs of entries of the one output; and layers for better ones."""
    known, (logits,) = Known(graph.nodes, facts), graph.outputs
    order = live(known, [logits])
    compute_norms(norms_of(known, order))
    of_nodes = liplt_bounds(known, order, [logits])
    if effort == "tight":
      of_blocks = block_bounds(known, order, [logits])
      of_nodes = {i: jnp.fmin(of_nodes[i], bound) for i, bound in of_blocks.items()}
    ways = [
      _of_any(graph.nodes[logits].size, of_nodes[logits]),
      _from_last_layer(known, logits, of_nodes),
      _liplt(known, logits, order, of_nodes),
    ]
    layers = layers_of(known, [logits], of_nodes, effort)
    return functools.reduce(jnp.fmin, ways), layers

  return pairs


def _finished(effort: Effort, found: tuple[jax.Array, Layers | None]) -> jax.Array:
  pairs, layers = found
  if layers is not None and len(pairs) > 1:
    steps, n = steps_for(effort, layers.widths), len(pairs)
    pairs = jnp.fmin(pairs, ellipsoid_pairs(layers, n, steps, effort == "tight"))
    # What is best for pairs on average need not be for each of them.
    pairs = jnp.fmin(pairs, _of_any(n, ellipsoid_bound(layers, steps)))
  # A bound that overflowed says nothing.
  return jnp.where(jnp.isnan(pairs), jnp.inf, pairs)


def logits_of(results: Any) -> jax.Array:
  """The logits, from what a function returns."""
  leaves = jax.tree.leaves(results)
  if len(leaves) != 1:
    msg = (
      f"fn returned {len(leaves)} arrays; expected one, the logits. Select it: lambda x: fn(x)[0]."
    )
    raise ValueError(msg)
  (logits,) = leaves
  shape = jnp.shape(logits)
  if not shape or math.prod(shape[:-1]) != 1:
    msg = (
      f"fn returned shape {shape}; expected (classes,), or (1, classes) with axes of length 1"
      " before the classes. Pass one example, not a batch."
    )
    raise ValueError(msg)
  return jnp.reshape(logits, shape[-1:])


def _from_last_layer(known: Known, logits: int, bounds: dict[int, jax.Array]) -> jax.Array:
  """With the linear maps since the last function that is not, or that reads several arrays."""
  n = known.nodes[logits].size
  if not 0 < n <= ROWS_UP_TO:
    return _of_any(n, bounds[logits])
  i, matrix = logits, rows_at(known, logits)
  while isinstance(known.part(i), LinearPart) and len(known.parents(i)) == 1:
    earlier = rows_back(known, i, 0, matrix)
    if earlier is None:
      break
    i, matrix = known.parents(i)[0], earlier
  return times_above(_distances(matrix.value.reshape((n, -1)), matrix.error), bounds[i])


def _liplt(known: Known, logits: int, order: list[int], bounds: dict[int, jax.Array]) -> jax.Array:
  """As `liplt_bounds`, with differences of rows for norms; only scalar functions are split."""
  n = known.nodes[logits].size
  terms = []
  for i, way in backward(known, logits, order, splits=False):
    if is_source(known.part(i)):
      way, moves = of_source(known, i, way)
      terms.append(times_above(_pair_norms(n, way), moves(bounds)))
  return up(functools.reduce(jnp.add, terms), len(terms) + 8)


def _pair_norms(n: int, way: Way) -> jax.Array:
  """At least the norm of the difference of two rows of n, for all pairs."""
  if isinstance(way, Rows):
    return _distances(way.value.reshape((n, -1)), way.error)
  return _of_any(n, way)


def _of_any(n: int, norm: Any) -> jax.Array:
  """From a norm of all rows together."""
  return jnp.full((n, n), up(math.sqrt(2) * jnp.asarray(norm)))


@jax.jit
def _distances(rows: jax.Array, error: jax.Array) -> jax.Array:
  # Of a matrix that is off by `error` a difference is by √2 `error`. Recomputed for
  # derivatives: the differences of all pairs are many.
  @jax.checkpoint  # pyright: ignore[reportPrivateImportUsage]
  def of_class(row):
    return gram_upper_bound((rows - row)[:, None])

  return up(lax.map(of_class, rows) + math.sqrt(2) * (error + flushed(rows)))
