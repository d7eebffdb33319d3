"""Lipschitz bounds of functions, shaped like ``jax.grad``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.certify.bounds.blocks import block_bounds
from lipjax.certify.bounds.effort import Effort, check_effort, steps_for
from lipjax.certify.bounds.ellipsoid import ellipsoid_bound
from lipjax.certify.bounds.graph import liplt_bounds, product_bounds
from lipjax.certify.bounds.graph_layers import layers_of
from lipjax.certify.compiled import on_arrays
from lipjax.certify.facts import Facts, LipschitzPart
from lipjax.certify.fast import fast_jit
from lipjax.certify.graph import Graph
from lipjax.certify.lower.bound import lipschitz_lower_bound
from lipjax.certify.maps import Known, hypotenuse, live, norms_of
from lipjax.certify.norms import compute_norms
from lipjax.measure.bounds import BoundMethod, Bounds

#: Engines by name, as in `Bounds.names`.
ENGINES = {
  "product": BoundMethod.PRODUCT,
  "liplt": BoundMethod.LIPLT,
  "ellipsoid": BoundMethod.ELLIPSOID,
}


def lipschitz_upper_bound(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  effort: Effort = "default",
) -> Callable[..., jax.Array]:
  r"""A function of the same arguments that gives a proved Lipschitz constant of `fn`.

  .. math:: \|f(x) - f(y)\|_2 \le L\,\|x - y\|_2 \quad\text{for all } x, y

  with the Euclidean norm over all entries of the argument and of the result. `fn` is
  traced, not run: what does not depend on the argument is computed, products with it become
  linear maps whose norms are certified intervals' upper ends, activations get their range
  of slopes. The smallest of several bounds counts: the product of the norms, LipLT
  (Fazlyab et al. 2023), and, where a graph has few values at a time or they are images, an
  ellipsoid that differences stay in, whose best one is the optimum of the semidefinite program
  LipSDP-Neuron (Fazlyab et al. 2019); of images with one multiplier for a channel.

  With a `radius`, for all x and y at most so far from the given argument; with a `box`, for
  those between its ends. Ranges of values are then propagated, and slopes are those on them: a
  unit that does not switch is linear, and products of two arrays, as in self-attention, and
  layer norms get the bounds that they have there.

  Guarantee: an upper bound for all inputs of the given shape, or of the given domain, and for
  the function in exact arithmetic, rounding in computing the bound included. Nothing is taken
  to have slope 1 that is not known to: what has no rule, or no Lipschitz constant, raises. On a
  domain it rests on XLA's exponentials being right to 512 units in the last place. Infinite
  where ranges hold a point of infinite slope, or overflow, and where a constant is NaN, or one
  that is added is infinite (a mask of infinities belongs in ``jnp.where``). Numbers too small to
  be normal count as 0 in weights, as they do in XLA's arithmetic.

  Args:
    fn: any JAX function of arrays; linen, nnx, Haiku and Equinox modules are applied in a
      lambda. In evaluation mode: no dropout, no batch statistics.
    argnums: the argument that moves, or the arguments: pytrees of floating-point arrays.
    radius: of the l2 ball around the argument, all its arrays together; a number, which may
      be traced. Of a traced one that is negative or NaN the bound is infinite.
    box: the smallest and the largest value of an entry: numbers, or arrays of the argument's
      shape. With a radius too, what lies in both.
    effort: ``"fast"`` for norms alone; ``"tight"`` for 300 steps of gradient descent on the
      ellipsoid (within 0.1 % of the optimum on LipSDP's two published networks), fewer where these
      would take minutes, and residual layers in a row also one by one; by default as many as about
      a second allows, up to 20.

  Returns:
    A function of `fn`'s arguments with a scalar, float32 or wider. Without a radius only
    shapes and dtypes count of the argument at `argnums`. Differentiable in the other arguments,
    which may be traced; under ``jax.jit`` too.

  Raises:
    CertifyError: a `ValueError` that names the primitive and the line that is in the way.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> def net(params, x):
    ...   return params["out"] @ jax.nn.relu(params["in"] @ x + 1)
    >>> params = {"in": 2 * jnp.eye(3), "out": jnp.ones((1, 3))}
    >>> upper = lipjax.lipschitz_upper_bound(net, argnums=1)(params, jnp.zeros(3))
    >>> print(f"{upper:.3f}")  # 2·√3
    3.464
  """
  check_effort(effort)

  def bound(*args: Any) -> jax.Array:
    return _upper(fn, argnums, args, radius, box, effort)[0]

  return bound


def lipschitz_bounds(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  effort: Effort = "default",
  **options: Any,
) -> Callable[..., Bounds]:
  r"""An interval that contains the Lipschitz constant of `fn`.

  The upper end is `lipschitz_upper_bound`'s, the lower end a slope that
  `lipschitz_lower_bound` finds from the given argument on.

  Guarantee: ``lower <= L <= upper`` as stated there for each end: the upper one is proved,
  with rounding; the lower one was found, up to the rounding of `fn` itself.

  Args:
    fn: any JAX function of arrays.
    argnums: the argument that moves, or the arguments.
    radius: as in `lipschitz_upper_bound`.
    box: likewise.
    effort: likewise, of the upper end.
    options: of `lipschitz_lower_bound`.

  Returns:
    A function of `fn`'s arguments with `Bounds`; ``names`` says which engine the upper end
    is from: ``product`` with ``effort="tight"`` is that of residual layers' own bounds.

  Raises:
    CertifyError: as `lipschitz_upper_bound`.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> bounds = lipjax.lipschitz_bounds(lambda x: jnp.tanh(3 * x) - x)(jnp.zeros(2))
    >>> print(f"{bounds.lower:.3f} {bounds.upper:.3f} {bounds.names}")
    2.000 2.000 product
  """
  check_effort(effort)
  lower = lipschitz_lower_bound(fn, argnums, radius=radius, box=box, **options)

  def bounds(*args: Any) -> Bounds:
    upper, method = _upper(fn, argnums, args, radius, box, effort)
    return Bounds(lower(*args), upper, method)

  return bounds


def _upper(
  fn: Callable[..., Any],
  argnums: int | Sequence[int],
  args: Sequence[Any],
  radius: Any | None,
  box: tuple[Any, Any] | None,
  effort: Effort,
) -> tuple[jax.Array, Any]:
  """The smallest upper bound, and which engine it is from."""
  found = bounds_by_engine(fn, argnums, args, radius, box, effort)
  return _smallest(list(found.values()), tuple(ENGINES[name] for name in found))


# One program, as each that is compiled is waited for.
@fast_jit(static_argnums=(1,))
def _smallest(bounds: list[jax.Array], methods: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  values = jnp.stack(bounds)
  # A bound that overflowed says nothing.
  values = jnp.where(jnp.isnan(values), jnp.inf, values)
  best = jnp.argmin(values)
  return values[best], jnp.asarray(methods, jnp.int32)[best]


def bounds_by_engine(
  fn: Callable[..., Any],
  argnums: int | Sequence[int],
  args: Sequence[Any],
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  effort: Effort = "default",
) -> dict[str, jax.Array]:
  """Upper bounds by the engine's name."""
  then = functools.partial(finished, effort)
  found = on_arrays(engines(effort), fn, argnums, args, radius, box, then)
  return {"product": jnp.zeros(())} if found is None else found[1]


# The same function for the same effort: it is a part of the key of compiled programs.
@functools.cache
def engines(effort: Effort) -> Callable[[Graph, list[Facts]], dict[str, Any]]:
  """What gives upper bounds of all outputs together, by the engine's name; layers for one."""

  def bounds(graph: Graph, facts: list[Facts]) -> dict[str, Any]:
    return bounds_of(graph, Known(graph.nodes, facts), effort)[1]

  return bounds


def bounds_of(
  graph: Graph, known: Known, effort: Effort, *, has_liplt: bool = False
) -> tuple[dict[str, dict[int, jax.Array]], dict[str, Any]]:
  """By the engine's name the bounds of each node, and of all outputs together; layers for one."""
  outputs = list(dict.fromkeys(graph.outputs))
  order = live(known, outputs)
  compute_norms(norms_of(known, order))
  if effort == "tight":
    by_node = {"product": block_bounds(known, order, outputs)}
  else:
    by_node = {"product": product_bounds(known, order)}
  layers = layers_of(known, graph.outputs, by_node["product"], effort)
  if has_liplt or layers is None or effort == "tight" or not _is_chain(known, order):
    by_node["liplt"] = liplt_bounds(known, order, outputs)
  found = {name: hypotenuse([b[i] for i in graph.outputs]) for name, b in by_node.items()}
  return by_node, found if layers is None else found | {"ellipsoid": layers}


def finished(effort: Effort, found: dict[str, Any]) -> dict[str, jax.Array]:
  """With a bound in place of layers."""
  layers = found.pop("ellipsoid", None)
  if layers is not None:
    found["ellipsoid"] = ellipsoid_bound(layers, steps_for(effort, layers.widths))
  return found


def _is_chain(known: Known, order: Sequence[int]) -> bool:
  """Whether functions of single entries follow one another: LipLT was never 1e-3 better there."""
  is_scalar = not any(isinstance(known.part(i), LipschitzPart) for i in order)
  return is_scalar and all(len(known.parents(i)) <= 1 for i in order)
