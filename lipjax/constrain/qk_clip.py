"""QK-clip: attention's query and key weights scaled down where logits grew too large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from lipjax.constrain.keep import moved, updates_to
from lipjax.constrain.radii import check_fixed_number
from lipjax.operators.dense import Dense
from lipjax.operators.layouts import Layout
from lipjax.operators.pairs import find_pairs
from lipjax.operators.paths import float_leaves
from lipjax.operators.products import spread
from lipjax.operators.resolve import Overrides, resolve_operators


class Pair(NamedTuple):
  """An attention's kernels of queries and keys, and their operators."""

  query: str
  key: str
  of_query: Dense
  of_key: Dense


def qk_clip(
  threshold: float,
  *,
  names: tuple[str, str] = ("query", "key"),
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Scales queries and keys of heads whose largest logit was too large; last in a chain.

  With :math:`S_h` the largest attention logit :math:`q\cdot k/\sqrt{d_h}` of head h that the
  training step saw and :math:`\gamma_h = \min(1, \tau/S_h)`, the head's columns of ``params +
  updates`` are multiplied by :math:`\sqrt{\gamma_h}`, in the query's and the key's kernel and
  bias. The step gives the logits by the path of each attention::

    tx = optax.chain(optax.contrib.muon(0.02), lipjax.qk_clip(100.0))
    updates, state = tx.update(
      gradients, state, params, max_logits={"block_0/attention": largest}
    )  # (heads,)

  Where several heads of queries share one of keys, its keys are multiplied by the least
  :math:`\sqrt{\gamma_h}` of them, and each head's queries by what is left.

  Guarantee: a logit of head h is :math:`\gamma_h` times what it would have been, so that logits
  whose size was measured before the updates are at most :math:`\tau` but for what the updates add.

  Args:
    threshold: :math:`\tau`, a positive number; 100 in Kimi K2.
    names: of the modules whose kernels make queries and keys.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None. The operator's
      outputs, heads first, are those of one token; batch axes stack layers.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    An optax transformation without state. `update` takes ``max_logits={path: array}`` of shape
    ``(heads,)``, for stacked layers ``(layers, heads)``; the path is ``""`` where params are one
    attention's. Attentions that it leaves out are not scaled, nor are heads whose logit is a NaN
    or infinite. Updates keep their dtype.

  Raises:
    ValueError: a threshold that is not positive; from `init`, no pair of kernels; in `update`,
      missing params or logits, or logits of another path or shape.
    LayoutError: from `init`, a leaf that the layout cannot tell.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax, optax
    >>> from flax import linen as nn
    >>> model = nn.MultiHeadDotProductAttention(num_heads=2)
    >>> params = {"attention": model.init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]}
    >>> tx = lipjax.qk_clip(100.0)
    >>> still = jax.tree.map(jnp.zeros_like, params)
    >>> logits = {"attention": jnp.array([400.0, 50.0])}
    >>> updates, _ = tx.update(still, tx.init(params), params, max_logits=logits)
    >>> clipped = optax.apply_updates(params, updates)
    >>> ratio = lambda name: (
    ...   clipped["attention"][name]["kernel"] / params["attention"][name]["kernel"]
    ... )
    >>> ratio("query")[0, :, 0].tolist(), ratio("key")[0, :, 0].tolist()
    ([0.5, 1.0], [0.5, 1.0])

  Reference:
    Kimi Team (2025), arXiv:2507.20534, section 2.1.
  """
  check_fixed_number(threshold, "threshold")
  find = lambda params: _pairs(params, names, layout, layout_overrides)

  def init(params):
    if float_leaves(params) and not find(params):
      msg = (
        f"qk_clip found no pair of kernels under {names[0]!r} and {names[1]!r} among the leaves"
        f" {sorted(float_leaves(params))}; give names=(…, …) or a layout that knows them."
      )
      raise ValueError(msg)
    return optax.EmptyState()

  def update(updates, state, params=None, *, max_logits=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    pairs, candidates = find(params), moved(params, updates)
    clipped: dict[str, jax.Array] = {}
    for path, logits in _checked(max_logits, pairs).items():
      clipped |= _clipped(path, pairs[path], candidates, jnp.asarray(logits), threshold)
    return updates_to(params, updates, candidates, clipped), state

  return optax.GradientTransformationExtraArgs(init, update)


def _pairs(
  params: Any, names: tuple[str, str], layout: Layout | None, layout_overrides: Overrides | None
) -> dict[str, Pair]:
  """By the path of the attention."""
  operators: Any = resolve_operators(params, layout, layout_overrides)
  return {
    pair.above: Pair(pair.first, pair.second, operators[pair.first], operators[pair.second])
    for pair in find_pairs(operators, names)
  }


def _checked(max_logits: Any, pairs: Mapping[str, Pair]) -> Mapping[str, Any]:
  if not isinstance(max_logits, Mapping):
    msg = (
      "qk_clip needs the largest logits of the step: tx.update(updates, state, params,"
      f" max_logits={{path: (heads,)}}) with paths of {sorted(pairs)}; got {max_logits!r}."
    )
    raise ValueError(msg)
  if unknown := sorted(set(max_logits) - set(pairs)):
    msg = f"max_logits has {unknown}, and the attentions are {sorted(pairs)}."
    raise ValueError(msg)
  return max_logits


def _clipped(
  path: str, pair: Pair, leaves: Mapping[str, jax.Array], logits: jax.Array, threshold: float
) -> dict[str, jax.Array]:
  """Both kernels and biases, scaled."""
  batch = pair.of_query.batch_shape(leaves[pair.query].shape)
  widths = [
    math.prod(op.output_shape(leaves[p].shape)[len(batch) :])
    for p, op in ((pair.query, pair.of_query), (pair.key, pair.of_key))
  ]
  heads = logits.shape[-1] if logits.ndim else 0
  size = widths[0] // max(heads, 1)
  fits = heads and size * heads == widths[0] and widths[1] % size == 0
  key_heads = widths[1] // size if fits else 1
  if logits.shape != (*batch, heads) or not fits or heads % max(key_heads, 1):
    msg = (
      f"max_logits[{path!r}] has shape {logits.shape}; expected {(*batch, 'heads')}, heads that"
      f" divide the {widths[0]} outputs of {pair.query!r}, each of as many as one of the"
      f" {widths[1]} of {pair.key!r} has."
    )
    raise ValueError(msg)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  is_above = jnp.isfinite(logits) & (logits > threshold)
  gamma = jnp.where(is_above, threshold / logits, 1)
  grouped = gamma.reshape((*batch, key_heads, heads // key_heads))
  of_key = jnp.sqrt(jnp.min(grouped, axis=-1))
  of_query = (grouped / of_key[..., None]).reshape(gamma.shape)
  found = {}
  for p, operator, factors in (
    (pair.query, pair.of_query, of_query),
    (pair.key, pair.of_key, of_key),
  ):
    found |= _scaled(p, operator, leaves, jnp.repeat(factors, size, axis=-1))
  return found


def _scaled(
  path: str, operator: Dense, leaves: Mapping[str, jax.Array], factors: jax.Array
) -> dict[str, jax.Array]:
  """A kernel, and the bias beside it if there is one, times a factor for each output."""
  w, bias = leaves[path], path.rpartition("/")[0] + "/bias"
  shape = operator.output_shape(w.shape)
  factors = factors.reshape(shape)
  axes = (*operator.batch_axes, *operator.out_axes)
  found = {path: (w * spread(factors, axes, w.ndim)).astype(w.dtype)}
  if bias in leaves:
    found[bias] = (leaves[bias] * factors.reshape(leaves[bias].shape)).astype(leaves[bias].dtype)
  return found
