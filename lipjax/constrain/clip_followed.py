"""What of the singular values that are followed is above a limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lipjax.measure.block import SingularBlock
from lipjax.measure.groups import Group, unstack_by_path
from lipjax.measure.scaling import nonzero
from lipjax.measure.sharding import result_sharded
from lipjax.measure.vectors import SingularVectors, unpack_vectors


def followed_excess(
  groups: list[Group],
  leaves: Mapping[str, Any],
  vectors: SingularVectors,
  limits: Mapping[str, Any],
) -> dict[str, jax.Array]:
  r""":math:`\sum_i (\|Wv_i\| - \beta)_+ u_iv_i^T` over the k right vectors, by path.

  Two products with each weight. With singular vectors it is :math:`W - \mathrm{clip}_\beta(W)`
  but for what lies beyond the k largest.
  """
  found = {}
  for group, stacked in zip(groups, unpack_vectors(vectors, groups), strict=True):
    if group.operator.has_closed_form:
      continue
    for path, block in unstack_by_path(group, stacked).items():
      w = leaves[path]
      of = lambda *args, group=group: _excess(group, *args)
      args = _top_rows(block), block.sigma > 0, limits[path]
      found[path] = result_sharded(of, (w, args), jax.typeof(w).sharding.spec)(w, *args)
  return found


def _top_rows(block: SingularBlock) -> jax.Array:
  k, n = block.sigma.shape[-1], block.sigma.ndim - 1
  return jax.lax.slice_in_dim(block.v, 0, k, axis=n)


def _excess(group: Group, w: jax.Array, v: jax.Array, is_one: jax.Array, limit: Any) -> jax.Array:
  """Of one leaf; a row without a singular value is any vector."""
  n = group.n_batch - 1
  images_of = lambda w: jax.vmap(group.operator.apply, in_axes=(None, n), out_axes=n)(w, v)
  images, transpose = jax.vjp(images_of, w.astype(v.dtype))
  unit = nonzero(jnp.max(jnp.abs(images), initial=0))
  axes = tuple(range(n + 1, images.ndim))
  length = unit * jnp.sqrt(jnp.sum(jnp.square(images / unit), axis=axes))
  share = jnp.maximum(length - jnp.expand_dims(jnp.asarray(limit), -1), 0) / nonzero(length)
  share = jnp.where(is_one, share, 0)
  return transpose(jnp.expand_dims(share, axes) * images)[0]
