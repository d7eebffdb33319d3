"""How a transformation that goes last in a chain keeps params in a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.leaves import LeafProjection, map_leaves
from lipjax.constrain.radii import Radius, initial_radii, radii_now
from lipjax.measure.sharding import replicated_like
from lipjax.operators.base import LinearOperator
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.per_operator import Sides, sides
from lipjax.operators.resolve import Overrides, require_operators

Leaves = Mapping[str, jax.Array]


class KeepParamsState(NamedTuple):
  """State of the ``keep_params_…`` transformations that track nothing.

  Attributes:
    count: int32, updates so far; for a schedule of the radius.
    radii: by path, what norms were in `init`; None unless they are the radii.
  """

  count: Any
  radii: Any = None


def moved(params: Any, updates: Any) -> dict[str, jax.Array]:
  """Every floating-point leaf by path, as `optax.apply_updates` will leave it."""
  leaves = {path: jnp.asarray(w) for path, w in float_leaves(params).items()}
  changes = float_leaves(updates)
  return {
    path: (w + changes[path]).astype(w.dtype) if path in changes else w
    for path, w in leaves.items()
  }


def updates_to(params: Any, updates: Any, candidates: Leaves, projected: Leaves) -> Any:
  """Updates that lead from `params` to `projected`; the same ones where nothing moved.

  ``p + (q - p)`` can round past `q`. The difference is then shortened by one unit in
  its last place, which is enough: where it is inexact, it is of `q`'s size.
  """
  leaves = float_leaves(params)

  def visit(path, g):
    if path not in projected:
      return g
    p, q = jnp.asarray(leaves[path]), projected[path]
    wide = jnp.promote_types(p.dtype, g.dtype)
    step = (q.astype(wide) - p.astype(wide)).astype(g.dtype)
    beyond = jnp.abs((p + step).astype(p.dtype)) > jnp.abs(q)
    inward = jnp.where(q > 0, -jnp.inf, jnp.inf).astype(g.dtype)
    step = jnp.where(beyond, jnp.nextafter(step, inward), step)
    unmoved = (q == candidates[path]) | jnp.isnan(candidates[path])
    return jnp.where(unmoved, g, step)

  return map_float_leaves(visit, updates)


def keep_leaves(
  name: str,
  project_leaf: LeafProjection,
  norm: Callable[[LinearOperator, jax.Array], jax.Array],
  radius: Radius,
  layout: Layout | None,
  layout_overrides: Overrides | None,
  of: Sides = sides,
) -> optax.GradientTransformationExtraArgs:
  """A transformation that projects every operator's leaf by itself.

  Args:
    name: the caller's.
    project_leaf: of an operator, its leaf and a radius.
    norm: what an initial radius is.
    radius: as users give it.
    layout: likewise.
    layout_overrides: likewise.
    of: how many inputs and outputs a `PerOperator` sees.
  """
  resolve = lambda params: require_operators(params, layout, layout_overrides, name)

  def norms(operators, leaves):
    return {path: norm(op, jnp.asarray(leaves[path])) for path, op in operators.items()}

  def project(params, leaves, state):
    operators = resolve(params)
    radii = radii_now(radius, state.count, state.radii, operators, leaves, of)
    return map_leaves(project_leaf, operators, leaves, radii)

  start = lambda params: initial_radii(radius, norms, resolve(params), float_leaves(params))
  return last_in_chain(project, start)


def last_in_chain(
  project: Callable[[Any, Leaves, KeepParamsState], Mapping[str, jax.Array]],
  start: Callable[[Any], Any] = lambda params: None,
) -> optax.GradientTransformationExtraArgs:
  """A transformation whose ``params + updates`` is ``project(params, leaves, state)``.

  Args:
    project: of the params before, the leaves after the updates, and the state.
    start: from params to the state's radii.
  """

  def init(params):
    count = replicated_like(float_leaves(params), jnp.zeros((), jnp.int32))
    return KeepParamsState(count, start(params))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    candidates = moved(params, updates)
    projected = project(params, candidates, state)
    updates = updates_to(params, updates, candidates, projected)
    return updates, state._replace(count=optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init, update)
