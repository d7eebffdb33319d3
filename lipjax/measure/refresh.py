"""Singular vectors brought up to date with their weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.measure.block import SingularBlock, fixed_rows
from lipjax.measure.groups import Group, map_weights, stack_weights
from lipjax.measure.scaling import nonzero
from lipjax.measure.sharding import replicated_result
from lipjax.measure.subspace import Probe, Rows, Step, subspace_step, top_vectors
from lipjax.measure.vectors import SingularVectors, pack_vectors, unpack_vectors

#: The estimated relative error of σ₁ at which steps end, unless told otherwise.
TOL = 0.01
#: Steps after which they end in any case.
MAX_STEPS = 50
#: An operator's weights are taken to be others where the triplet of before is off by more.
REPLACED = 0.1
#: Rows of the block before that give way to an operator's probes.
N_PROBES = 2


@jax.custom_batching.custom_vmap
def anywhere(due: jax.Array) -> jax.Array:
  """`due`; under `jax.vmap` whether any of the batch is, and then all are.

  Where networks are trained side by side, a branch would else be taken at every update, and
  what a loop does for one member thrown away for the others.
  """
  return due


@anywhere.def_vmap
def _(size: int, is_batched: list[bool], due: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return anywhere(jnp.any(due) if is_batched[0] else due), False


class Progress(NamedTuple):
  """What steps came to, the largest of all operators.

  Attributes:
    error: estimate of the relative error of σ₁.
    drift: by how much the triplets of before were off: σ₁, or what their v gives of it.
  """

  error: jax.Array
  drift: jax.Array


def refresh(
  groups: Sequence[Group],
  leaves: Mapping[str, Any],
  vectors: SingularVectors,
  *,
  n_steps: int | jax.Array = 1,
  tol: float | jax.Array | None = TOL,
  due: jax.Array | None = None,
) -> tuple[SingularVectors, Progress]:
  """At least `n_steps` steps on all operators, and as many as bring every σ₁ within `tol`.

  Args:
    groups: of equal leaves.
    leaves: the weights by path.
    vectors: of these groups.
    n_steps: a number, which may be traced.
    tol: of the estimated relative error of every σ₁; None for `n_steps` steps.
    due: whether to do anything; yes when None.

  Returns:
    The new vectors, and how far they are; 0 where nothing was due.
  """
  if not groups:
    return vectors, Progress(jnp.zeros(()), jnp.zeros(()))
  weights = [[jnp.asarray(leaves[path]) for path in group.paths] for group in groups]
  weights, arrays = lax.stop_gradient((weights, vectors[:-1]))
  tol = jnp.inf if tol is None else tol
  *arrays, progress = _refresh(tuple(groups), weights, arrays, n_steps, tol, due)
  return SingularVectors(*arrays, paths=vectors.paths), progress


@functools.partial(jax.jit, static_argnames="groups")
def _refresh(groups, weights, arrays, n_steps, tol, due):
  """`refresh` on arrays, compiled once for a tree when called outside jit."""

  def steps(arrays, weights, n_steps, tol):
    vectors = SingularVectors(*arrays, paths=None)
    members = list(zip(groups, weights, unpack_vectors(vectors, groups), strict=True))
    moving = [member for member in members if not member[0].operator.has_closed_form]
    moved, count, progress = _iterate(moving, n_steps, tol)
    rest = iter(moved)
    blocks = [_closed_form(*m) if m[0].operator.has_closed_form else next(rest) for m in members]
    for (group, _, old), new in zip(members, blocks, strict=True):
      if group.operator.has_closed_form:
        moved = _largest(_change(old.sigma, new.sigma))
        progress = progress._replace(drift=jnp.maximum(progress.drift, moved))
    return *pack_vectors(groups, blocks, vectors.steps + count)[:-1], progress

  def run(weights, arrays, n_steps, tol, due):
    if due is None:
      return steps(arrays, weights, n_steps, tol)
    zero = jnp.zeros((), jnp.float32)
    wait = lambda arrays, *_: (*arrays, Progress(zero, zero))
    return lax.cond(due, steps, wait, arrays, weights, n_steps, tol)

  return replicated_result(run, weights)(weights, arrays, n_steps, tol, due)


def best_vectors(
  groups: Sequence[Group], leaves: Mapping[str, Any], vectors: SingularVectors
) -> dict[str, jax.Array]:
  """The best right vector in the span of each block, for the weights as they are, by path.

  The weights may have moved since the vectors were refreshed: then another of the block may
  have become the top one.
  """
  weights = [[jnp.asarray(leaves[path]) for path in group.paths] for group in groups]
  weights, arrays = lax.stop_gradient((weights, vectors[:-1]))
  found = {}
  for group, tops in zip(groups, _best(tuple(groups), weights, arrays), strict=True):
    found |= dict(zip(group.paths, tops, strict=True))
  return dict(sorted(found.items()))


@functools.partial(jax.jit, static_argnames="groups")
def _best(groups, weights, arrays) -> list[jax.Array]:

  def run(weights, arrays):
    blocks = unpack_vectors(SingularVectors(*arrays, paths=None), groups)
    members = list(zip(groups, weights, blocks, strict=True))
    moving = [m for m in members if not m[0].operator.has_closed_form]
    rest = iter(_best_of_span(moving))
    return [m[2].v if m[0].operator.has_closed_form else next(rest) for m in members]

  found = replicated_result(run, weights)(weights, arrays)
  shapes = [group.block_shapes(1).v for group in groups]
  without_rows = lambda group, shape: shape[: group.n_batch] + shape[group.n_batch + 1 :]
  return [
    x.reshape(without_rows(group, shape))
    for group, shape, x in zip(groups, shapes, found, strict=True)
  ]


def _best_of_span(members: list) -> Rows:
  if not members:
    return []
  groups, weights, blocks = (list(column) for column in zip(*members, strict=True))
  loaded = [stack_weights(group, ws) for group, ws in zip(groups, weights, strict=True)]
  start = _flat(groups, blocks)
  k = start.sigma.shape[-1]
  apply = functools.partial(_products, groups, loaded, "apply")
  return top_vectors(apply, [v[:, :k] for v in start.v])


def _closed_form(group: Group, weights: list[jax.Array], block: SingularBlock) -> SingularBlock:
  """The exact block of operators that need no steps."""
  operator, k = group.operator, block.sigma.shape[-1]
  stack = stack_weights(group, weights)
  sigma = map_weights(lambda w: operator.closed_form_values(w, k), stack)
  _, u, v = map_weights(operator.closed_form, stack)
  return SingularBlock(sigma, u, v.reshape(block.v.shape))


def _iterate(members: list, n_steps, tol) -> tuple[list[SingularBlock], jax.Array, Progress]:
  """Steps on all groups together, until the last operator is within `tol`."""
  zero = jnp.zeros((), jnp.int32)
  if not members:
    nothing = jnp.zeros((), jnp.float32)
    return [], zero, Progress(nothing, nothing)
  groups, weights, blocks = (list(column) for column in zip(*members, strict=True))
  loaded = [stack_weights(group, ws) for group, ws in zip(groups, weights, strict=True)]
  apply = functools.partial(_products, groups, loaded, "apply")
  adjoint = functools.partial(_products, groups, loaded, "adjoint")
  k = blocks[0].sigma.shape[-1]
  probes = [
    _probes(group) if group.operator.has_probes and k > N_PROBES else None for group in groups
  ]
  mixes_little = np.repeat([p is not None for p in probes], [group.n_slices for group in groups])

  def is_unfinished(carry):
    i, block, _ = carry
    # NaN compares false, so an operator that is not finite never keeps the others going.
    wanted = jnp.any(block.error > tol) | ((i == 1) & jnp.any(block.promise > tol))
    return anywhere((i < n_steps) | ((i < MAX_STEPS) & wanted))

  def advance(carry):
    i, block, drift = carry
    sigma, v = block.sigma, block.v
    # An infinite error after the first step says that weights were replaced.
    sigma, v = _afresh(sigma, v, (i == 1) & jnp.isinf(block.error), mixes_little)
    new = subspace_step(apply, adjoint, probes, sigma, v)
    moved = jnp.maximum(new.gain, _change(sigma, new.sigma))
    were_replaced = (i == 0) & (sigma[:, 0] > 0) & (moved > REPLACED)
    new = new._replace(error=jnp.where(were_replaced, jnp.inf, new.error))
    return i + 1, new, jnp.where(i == 0, moved, drift)

  start = _flat(groups, blocks)
  i, block, drift = lax.while_loop(is_unfinished, advance, (zero, start, start.gain))
  return _stacked(groups, blocks, block), i, Progress(_largest(block.error), _largest(drift))


def _change(old: jax.Array, new: jax.Array) -> jax.Array:
  """Of the top values, relative to the new ones."""
  old, new = old[..., 0], new[..., 0]
  return jnp.abs(new - old) / nonzero(new)


def _largest(x: jax.Array) -> jax.Array:
  """The largest of all operators, but for those that are not finite."""
  return jnp.max(jnp.where(jnp.isnan(x), 0, x), initial=0).astype(jnp.float32)


def _afresh(
  sigma: jax.Array, v: Rows, were_replaced: jax.Array, mixes_little: np.ndarray
) -> tuple[jax.Array, Rows]:
  """Fresh vectors beside the old ones for the operators whose weights were replaced.

  The old ones may lie in subspaces that the new weights do not lead out of. Those of an
  operator that mixes little (frequencies of a convolution) do so always, and go as well.
  """
  k, sizes = sigma.shape[-1], [x.shape[0] for x in v]
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
  columns = v, jnp.split(were_replaced, ends), np.split(np.where(mixes_little, 0, k), ends)
  rows = []
  for x, lost, first in zip(*columns, strict=True):
    is_fresh = lost[:, None] & (np.arange(2 * k) >= first[:, None])
    rows.append(jnp.where(is_fresh[..., None], fixed_rows(*x.shape[1:], dtype=x.dtype), x))
  return jnp.where((were_replaced & mixes_little)[:, None], 0, sigma), rows


def _products(groups: list[Group], loaded: list, side: str, rows: Rows) -> Rows:
  """`apply` or `adjoint` of every group's operator, on rows of flat vectors."""
  found = []
  for group, weights, x in zip(groups, loaded, rows, strict=True):
    operator, n = group.operator, group.n_batch - 1
    shape = (operator.input_shape if side == "apply" else operator.output_shape)(group.shape)
    x = x.reshape((len(group.paths), *shape[:n], x.shape[1], *shape[n:]))
    several = jax.vmap(getattr(operator, side), in_axes=(None, n), out_axes=n)
    y = map_weights(several, weights, x)
    found.append(y.reshape((group.n_slices, y.shape[n + 1], math.prod(y.shape[n + 2 :]))))
  return found


def _probes(group: Group) -> Probe:
  """`LinearOperator.probes` of all slices of a group, on flat vectors."""
  one, n_axes = group.operator.slice_operator(), group.n_batch - 1
  inputs = group.operator.input_shape(group.shape)[n_axes:]

  def run(images: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = (x.reshape((-1, *inputs)) for x in (images, rest))
    found, growth = jax.vmap(functools.partial(one.probes, group.shape))(*both)
    return found.reshape((images.shape[0], N_PROBES, images.shape[1])), growth

  return run


def _flat(groups: list[Group], blocks: list[SingularBlock]) -> Step:
  """Blocks of vectors of any rank and length as rows of flat ones."""
  sigma, u, v = [], [], []
  for group, block in zip(groups, blocks, strict=True):
    n = group.n_batch
    sigma.append(block.sigma.reshape((group.n_slices, block.sigma.shape[-1])))
    u.append(block.u.reshape((group.n_slices, 1, math.prod(block.u.shape[n:]))))
    v.append(block.v.reshape((group.n_slices, block.v.shape[n], math.prod(block.v.shape[n + 1 :]))))
  stack = jnp.concatenate(sigma)
  zeros = [jnp.zeros_like(stack[:, 0]) for _ in range(3)]
  return Step(stack, u, v, *zeros)


def _stacked(groups: list[Group], blocks: list[SingularBlock], step: Step) -> list[SingularBlock]:
  """The reverse of `_flat`, in the shapes and dtypes of `blocks`."""
  sizes = [group.n_slices for group in groups]
  sigma = jnp.split(step.sigma, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
  columns = zip(sigma, step.u, step.v, strict=True)
  return [
    SingularBlock(*(x.reshape(like.shape).astype(like.dtype) for x, like in zip(new, old)))  # noqa: B905
    for new, old in zip(columns, blocks, strict=True)
  ]
