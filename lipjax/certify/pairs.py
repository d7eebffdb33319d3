"""Lipschitz bounds of the differences of two logits, for all pairs of classes at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.bounds.chain import chain_upper_bounds
from lipjax.certify.bounds.graph import liplt_bounds
from lipjax.certify.bounds.reading import as_chain
from lipjax.certify.compiled import on_arrays
from lipjax.certify.facts import Facts, LinearPart
from lipjax.certify.graph import Graph
from lipjax.certify.linear import compute_norms
from lipjax.certify.maps import (
  ROWS_UP_TO,
  Known,
  Way,
  backward,
  live,
  norms_of,
  of_source,
  rows_back,
)
from lipjax.certify.matrix import Rows, identity_rows
from lipjax.measure.gram import gram_upper_bound
from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import unit_roundoff, up
from lipjax.rounding.numbers import flushed, times_above

#: ECLipsE looks at every pair by itself, if there are at most so many …
CHAIN_PAIRS_UP_TO = 1024
#: … and at so many at a time.
CHAIN_PAIRS_AT_ONCE = 64


def margin_upper_bounds(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
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
  counts as √2 times its norm. On a chain of matrices ECLipsE-Fast runs for each pair, for up
  to 45 classes; that cost little for layers of width 256, and for ten classes and widths up
  to 128, whose layers are computed as one stack, 10 to 20 times as much as one bound.

  Guarantee: upper bounds, under the conditions of `lipschitz_upper_bound`, rounding in
  computing them included; at most √2 times its bound, but for rounding.

  Args:
    fn: any JAX function whose result is one array of the logits of one example: (classes,),
      or with axes of length 1 before the classes.
    argnums: the argument that moves, or the arguments.
    radius: as in `lipschitz_upper_bound`; a radius that follows from the result is then
      certified up to this one only.
    box: likewise.

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
    logits_of = lambda *args: _logits(fn(*args))
    found = on_arrays(_pairs, logits_of, argnums, args, radius, box)
    if found is None:  # they do not depend on what moves
      logits = jax.eval_shape(lambda: logits_of(*args))
      return jnp.zeros((logits.size, logits.size), compute_dtype(logits.dtype))
    pairs = found[1]
    return jnp.where(jnp.eye(len(pairs), dtype=bool), 0, pairs)

  return bounds


def _pairs(graph: Graph, facts: list[Facts]) -> jax.Array:
  """For all pairs of entries of the one output."""
  known, (logits,) = Known(graph.nodes, facts), graph.outputs
  order = live(known, [logits])
  compute_norms(norms_of(known, order))
  of_nodes = liplt_bounds(known, order, [logits])
  ways = [
    _of_any(graph.nodes[logits].size, of_nodes[logits]),
    _from_last_layer(known, logits, of_nodes),
    _liplt(known, logits, order, of_nodes),
  ]
  chain = as_chain(known, order, [logits])
  if chain is not None and len(chain[0]) > 1:
    ways.append(_from_chain(*chain))
  found = functools.reduce(jnp.fmin, ways)
  # A bound that overflowed says nothing.
  return jnp.where(jnp.isnan(found), jnp.inf, found)


def _logits(results: Any) -> jax.Array:
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
  i, matrix = logits, identity_rows(known.nodes[logits])
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
    way, moved = of_source(known, i, way, bounds)
    terms.append(times_above(_pair_norms(n, way), moved))
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


def _from_chain(weights: tuple[jax.Array, ...], slopes: tuple[tuple[Any, Any], ...]) -> jax.Array:
  """ECLipsE of the chains that end with a pair's difference, and √2 of the whole chain's best."""
  n = weights[-1].shape[0]
  whole = chain_upper_bounds(weights, slopes)
  bounds = _of_any(n, functools.reduce(jnp.fmin, whole.values()))
  i, j = np.nonzero(np.triu(np.ones((n, n), bool), 1))
  if not 0 < len(i) <= CHAIN_PAIRS_UP_TO:
    return bounds
  *earlier, last = weights
  # An entry of a difference is off by a factor of 1 ± u: the function before has it.
  lost = 2 * unit_roundoff(last.dtype)
  low, high = slopes[-1]
  slopes = (*slopes[:-1], (low - lost * abs(low), high + lost * abs(high)))
  found = _of_rows((*earlier, last[i] - last[j]), slopes)
  # Differences that are too small to be normal are not in it.
  found = jnp.fmin(jnp.where(flushed(last) > 0, jnp.inf, found), bounds[i, j])
  return bounds.at[i, j].set(found).at[j, i].set(found)


def _of_rows(weights: Any, slopes: Any) -> jax.Array:
  """ECLipsE for each row of the last weight; other engines' results are not used, nor computed."""
  *earlier, rows = weights

  def of_row(row):
    bounds = chain_upper_bounds((*earlier, row[None]), slopes)
    return bounds.get("eclipse", jnp.full((), jnp.inf, row.dtype))

  return lax.map(of_row, rows, batch_size=CHAIN_PAIRS_AT_ONCE)
