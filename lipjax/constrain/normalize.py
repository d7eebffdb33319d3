"""Spectral normalization as a pure function of params and singular vectors."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.measure.groups import group_leaves
from lipjax.measure.norms import top_triplets
from lipjax.measure.refresh import best_vectors
from lipjax.measure.scaling import reciprocal, usable_scale
from lipjax.measure.sharding import result_sharded
from lipjax.measure.singular_vectors import triplet_at
from lipjax.measure.vectors import SingularVectors, check_vectors
from lipjax.operators.base import LinearOperator
from lipjax.operators.diagonal import Diagonal
from lipjax.operators.layouts import Layout
from lipjax.operators.paths import float_leaves, map_float_leaves
from lipjax.operators.products import compute_dtype, spread
from lipjax.operators.resolve import Overrides, resolve_operators

Mode = Literal["target", "cap"]
Target = float | jax.Array | Mapping[str, float | jax.Array]


def spectral_normalize(
  params: Any,
  vectors: SingularVectors | None = None,
  *,
  target: Target = 1.0,
  mode: Mode = "target",
  batch_variances: Mapping[str, jax.Array] | None = None,
  epsilon: float = 1e-5,
  layout: Layout | None = None,
  layout_overrides: Overrides | None = None,
) -> Any:
  r"""Params whose operators have spectral norm `target`, or at most `target`.

  ==========  ==================================================
  `mode`      :math:`\bar W`
  ==========  ==================================================
  ``target``  :math:`c\,W/\hat\sigma`
  ``cap``     :math:`W/\max(1, \hat\sigma/c)`
  ==========  ==================================================

  with :math:`\hat\sigma = \|W v\|` for the unit vector :math:`v` of `vectors`. Apply
  the network to the result and differentiate through it: with :math:`v` and
  :math:`u = Wv/\hat\sigma` constant, the gradient in :math:`W` is
  :math:`\frac{c}{\hat\sigma}(G - \langle G, W/\hat\sigma\rangle\,uv^T)`. `params`
  stay the optimizer's; nothing is written to them::

    def loss(params, vectors, batch):
      return task_loss(apply(lipjax.spectral_normalize(params, vectors), batch))


    vectors = lipjax.update_singular_vectors(params, vectors)  # once a training step
    gradients = jax.grad(loss)(params, vectors, batch)

  In evaluation leave `vectors` as they are: the same inputs give the same outputs.

  Guarantee: an estimate. :math:`\hat\sigma` comes from below, so the true norm is
  the target or, by as much as `vectors` lag behind, above it. Start from
  ``init_singular_vectors(params, start="converged")``, or pass no vectors, for norms
  within about 1e-6 of the target (float32). The norm of a `ReshapedKernel` is not
  the convolution's.

  Args:
    params: a pytree of arrays. Every operator of the layout is normalized, scales of
      normalization layers included; leave some out with `layout_overrides`.
    vectors: from `init_singular_vectors` or `update_singular_vectors`, with the same
      layout. Their length does not matter. None measures from cold, every time.
    target: :math:`c`, a positive number, an array, or ``{path: c}`` for every
      operator (of its batch shape, for a stacked one). Differentiable: a learned gain
      is a target that is trained.
    mode: ``"target"`` or ``"cap"``.
    batch_variances: ``{path: variance}`` of batch norm scales :math:`\gamma`, taken
      for the diagonal operator :math:`\gamma/\sqrt{\mathrm{var}+\epsilon}` that they
      are in evaluation (Gouk et al. 2021). Without it the operator is
      :math:`\gamma` alone.
    epsilon: batch norm's :math:`\epsilon`.
    layout: a layout function or ``{path: operator}``; `flax_layout` when None.
    layout_overrides: ``{regex: operator or None}``.

  Returns:
    A tree like `params`, same dtypes. A zero operator stays zero and its gradient
    passes as it is; a non-finite slice becomes NaN, for itself alone.

  Raises:
    LayoutError: a leaf that the layout cannot tell.
    ValueError: an unknown mode, a target that is not positive, vectors for other params, paths of
      `target` or `batch_variances` that are not those of the operators.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
    >>> vectors = lipjax.init_singular_vectors(params, start="converged")
    >>> lipjax.spectral_normalize(params, vectors)["kernel"].diagonal().round(4).tolist()
    [1.0, 0.25]
    >>> capped = lipjax.spectral_normalize(params, vectors, mode="cap", target=8.0)
    >>> capped["kernel"].diagonal().round(4).tolist()
    [4.0, 1.0]

  Reference:
    Miyato et al. (2018), arXiv:1802.05957, equations 8 and 12; Gouk et al. (2021),
    arXiv:1804.04368, section 4 (cap and batch norm).
  """
  if mode not in get_args(Mode):
    msg = f"mode is {mode!r}; expected 'target' or 'cap'."
    raise ValueError(msg)
  operators = resolve_operators(params, layout, layout_overrides)
  leaves = float_leaves(params)
  if vectors is None:
    tops = {path: triplet.v for path, triplet in top_triplets(operators, leaves).items()}
  else:
    groups = group_leaves(operators, leaves)
    check_vectors(vectors, groups, "spectral_normalize")
    tops = best_vectors(groups, leaves, vectors)
  variances = dict(batch_variances or {})
  _check_variances(variances, operators)
  scales = {path: lax.rsqrt(_wide(variance) + epsilon) for path, variance in variances.items()}
  return normalize_at(params, operators, tops, target=target, mode=mode, scales=scales)


def normalize_at(
  params: Any,
  operators: Mapping[str, LinearOperator],
  tops: Mapping[str, jax.Array],
  *,
  target: Target,
  mode: Mode,
  scales: Mapping[str, jax.Array] | None = None,
) -> Any:
  """`spectral_normalize` with the norms at given right vectors.

  Args:
    params: a pytree of arrays.
    operators: by path.
    tops: the top right vector of each.
    target: as in `spectral_normalize`.
    mode: as in `spectral_normalize`.
    scales: what the leaf of a batch norm is multiplied by before its norm is taken.
  """
  targets, scales = _targets(target, operators), scales or {}

  def visit(path, w):
    if path not in operators:
      return w
    w = jnp.asarray(w)
    measured = w * scales[path] if path in scales else w
    sigma = triplet_at(operators[path], measured, tops[path]).sigma
    return rescale(operators[path], w, sigma, targets[path], mode)

  return map_float_leaves(visit, params)


def rescale(
  operator: LinearOperator, w: jax.Array, sigma: jax.Array, target: Any, mode: Mode
) -> jax.Array:
  """`w` with every slice's norm taken from `sigma` to `target`, in the leaf's dtype."""
  dtype = compute_dtype(w.dtype)
  # A slice without a norm to divide by keeps its values, and so its gradient.
  usable = (sigma == usable_scale(sigma)) | jnp.isnan(sigma)
  factor = jnp.asarray(target, dtype) * reciprocal(jnp.where(usable, sigma, 1))
  if mode == "cap":
    factor = jnp.minimum(factor, 1)
  factor = jnp.where(usable, factor, 1)
  axes = operator.stack_axes

  def multiply(w, factor):
    return (w.astype(dtype) * spread(factor, axes, w.ndim)).astype(w.dtype)

  factor = jnp.broadcast_to(factor, sigma.shape)
  return result_sharded(multiply, w, jax.typeof(w).sharding.spec)(w, factor)


def _wide(x: Any) -> jax.Array:
  x = jnp.asarray(x)
  return x.astype(compute_dtype(x.dtype))


def _targets(target, operators):
  if not isinstance(target, Mapping):
    target = dict.fromkeys(operators, target)
  if set(target) != set(operators):
    msg = (
      f"target has the paths {sorted(target)}, but the operators of params are"
      f" {sorted(operators)}; give one for each."
    )
    raise ValueError(msg)
  for path, value in target.items():
    if isinstance(value, numbers.Real) and not float(value) > 0:
      msg = f"target of {path!r} is {value}; expected a positive number."
      raise ValueError(msg)
  return target


def _check_variances(variances, operators):
  for path in variances:
    if not isinstance(operators.get(path), Diagonal):
      msg = (
        f"batch_variances[{path!r}] names no scale: it is {operators.get(path)!r} here;"
        " expected the path of a batch norm's scale, such as 'BatchNorm_0/scale'."
      )
      raise ValueError(msg)
