"""What a Lipschitz bound says about predictions: radii in which the class cannot change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lipjax.measure.scaling import nonzero
from lipjax.operators.products import compute_dtype
from lipjax.rounding.errors import down, up


def certified_radius(
  logits: ArrayLike, upper: ArrayLike, *, labels: ArrayLike | None = None
) -> jax.Array:
  r"""The l2 radius around an input in which its class stays the strict argmax.

  .. math:: r = \min_{j\ne i}\ \frac{f_i - f_j}{L_{ij}}

  for the class i in question, with :math:`L_{ij}` a Lipschitz constant of
  :math:`f_i - f_j`. An l2 constant L of all logits together gives :math:`L_{ij}=\sqrt2L`,
  since :math:`|(e_i-e_j)^T(f(x)-f(y))|\le\sqrt2\,\|f(x)-f(y)\|`; bounds pair by pair, which
  `margin_upper_bounds` computes, are smaller.

  Guarantee: lower, rounding included, if `upper` is an upper bound and the logits are
  exact: closer than r to the input, no other class reaches class i's logit. Errors of the
  logits themselves are not in it; take them from the logits first.

  Args:
    logits: floating-point, (…, classes), at least two classes.
    upper: L, a number or an array that broadcasts to the batch shape of the logits, one for
      each sample; or (…, classes, classes), :math:`L_{ij}` for each pair, of which the
      diagonal is not read. What could be both is read as the latter.
    labels: integers, of the batch shape of the logits; the argmax when None.

  Returns:
    (…), float32 or wider, in the inputs' metric. 0 where the class is not the strict
    argmax (a tie, a wrong label, a label out of range), and where a logit or a bound is NaN
    or infinite, or a bound negative; inf where it is the argmax and every bound is 0.

  Raises:
    ValueError: logits that are not floating-point or without two classes, labels that are
      not integers, shapes that do not fit.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> w = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])  # norm sqrt(2)
    >>> logits = w @ jnp.array([2.0, 1.0])  # 2, -2 and 1
    >>> round(float(lipjax.certified_radius(logits, 2**0.5)), 4)
    0.5
    >>> pairs = jnp.linalg.norm(w[:, None] - w[None], axis=-1)
    >>> round(float(lipjax.certified_radius(logits, pairs)), 4)  # exact: the face is x = y
    0.7071

  Reference:
    Tsuzuku et al. (2018), arXiv:1802.04034, proposition 1; pair by pair: Hein & Andriushchenko
    (2017), arXiv:1705.08475, theorem 2.1.
  """
  logits, upper = jnp.asarray(logits), jnp.asarray(upper)
  if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim < 1 or logits.shape[-1] < 2:
    msg = (
      f"logits are {logits.dtype}{list(logits.shape)}; expected floating-point numbers with the"
      " classes, at least two, as the last axis."
    )
    raise ValueError(msg)
  if not any(jnp.issubdtype(upper.dtype, kind) for kind in (jnp.floating, jnp.integer)):
    msg = f"upper is {upper.dtype}; expected real numbers."
    raise ValueError(msg)
  batch, n_classes = logits.shape[:-1], logits.shape[-1]
  dtype = compute_dtype(jnp.result_type(logits.dtype, upper.dtype))
  logits = logits.astype(dtype)
  classes = jnp.argmax(logits, axis=-1) if labels is None else _check_labels(labels, batch)
  bounds = _of_pairs(upper, dtype, batch, n_classes)

  is_own = classes[..., None] == jnp.arange(n_classes)
  own = jnp.sum(jnp.where(is_own, logits, 0), axis=-1, keepdims=True)
  # Rows of the bounds that belong to the classes in question.
  bounds = jnp.sum(jnp.where(is_own[..., None], bounds, 0), axis=-2)
  margins = jnp.where(is_own, jnp.inf, own - logits)
  radii = jnp.where(bounds == 0, jnp.inf, down(margins / nonzero(bounds)))
  radius = jnp.min(jnp.where(is_own, jnp.inf, radii), axis=-1)
  others = jnp.where(is_own, 0, bounds)
  sound = (
    jnp.all(margins > 0, axis=-1)  # False for NaN
    & jnp.any(is_own, axis=-1)
    & jnp.all(jnp.isfinite(logits), axis=-1)
    & jnp.all(jnp.isfinite(others) & (others >= 0), axis=-1)
  )
  return jnp.where(sound, radius, 0)


def certified_accuracy(
  predict: Callable[[Any], jax.Array],
  upper: ArrayLike,
  inputs: Any,
  labels: ArrayLike,
  radii: ArrayLike,
  *,
  batch_size: int = 256,
  progress: bool = False,
) -> np.ndarray:
  r"""The fraction of examples that are right and stay so within each radius.

  An example counts at radius :math:`\varepsilon` if no input at an l2 distance of at most
  :math:`\varepsilon` changes its class: its `certified_radius`, with its label, is larger
  than :math:`\varepsilon`. At 0 that is the accuracy, ties counted as wrong.

  Guarantee: lower, under the conditions of `certified_radius`: no attack within
  :math:`\varepsilon` leaves a smaller fraction of these examples right.

  Args:
    predict: maps a batch of inputs to logits (B, classes). It is jitted here, and called
      with one batch size only: the last batch is filled up.
    upper: an upper bound of its Lipschitz constant *per example*, or (classes, classes) of
      pairs of logits (`margin_upper_bounds`), as for `certified_radius`.
    inputs: an array, of numpy or JAX, with the examples along the first axis, or a pytree
      of such; a batch at a time goes to the device.
    labels: integers (N,).
    radii: (R,) or a number, at least 0.
    batch_size: examples at a time.
    progress: show a bar, with `rich`.

  Returns:
    numpy, of the shape of `radii`, float64: fractions of N; NaN without examples.

  Raises:
    ValueError: examples and labels that differ in number, negative radii, a batch size below
      1, and whatever `certified_radius` refuses.

  Example:
    >>> import jax.numpy as jnp, numpy as np, lipjax
    >>> predict = lambda x: jnp.stack([x[:, 0], -x[:, 0]], axis=-1)  # sqrt(2)-Lipschitz
    >>> x, y = np.array([[0.1], [0.5], [-2.0], [3.0]], np.float32), np.array([0, 0, 1, 1])
    >>> lipjax.certified_accuracy(predict, 2**0.5, x, y, [0.0, 0.3, 1.0]).tolist()
    [0.75, 0.5, 0.25]

  Reference:
    The measure is that of Cohen et al. (2019), arXiv:1902.02918, section 4.
  """
  radii = np.asarray(radii, np.float64)
  labels = np.asarray(labels)
  _check_dataset(inputs, labels, radii, batch_size)
  upper = jnp.asarray(upper)
  if upper.ndim not in (0, 2):
    msg = f"upper has shape {upper.shape}; expected a number, or (classes, classes)."
    raise ValueError(msg)

  @jax.jit
  def of_batch(x, y):
    logits = predict(x)
    if jnp.shape(logits)[:-1] != (batch_size,):
      msg = (
        f"predict returned shape {jnp.shape(logits)} for a batch of {batch_size}; expected"
        f" logits ({batch_size}, classes)."
      )
      raise ValueError(msg)
    return certified_radius(logits, upper, labels=y)

  n = len(labels)
  certified = np.zeros(radii.shape, np.int64)
  for start in _batches(range(0, n, batch_size), progress):
    index = np.minimum(np.arange(start, start + batch_size), n - 1)
    batch = jax.tree.map(lambda x: x[index], inputs)  # noqa: B023
    found = np.asarray(of_batch(batch, labels[index]))[: n - start]
    certified += np.sum(found.astype(np.float64) > radii[..., None], axis=-1)
  return certified / n if n else np.full(radii.shape, np.nan)


def _of_pairs(upper: jax.Array, dtype, batch: tuple[int, ...], n_classes: int) -> jax.Array:
  """Bounds (…, classes or 1, classes or 1) of the differences of two logits."""
  upper = upper.astype(dtype)
  if upper.shape[-2:] == (n_classes, n_classes) and _fits(upper.shape[:-2], batch):
    return upper
  if _fits(upper.shape, batch):
    return up(math.sqrt(2) * upper)[..., None, None]
  msg = (
    f"upper has shape {upper.shape}; expected a number, one for each sample, {batch}, or one for"
    f" each pair of classes, {(*batch, n_classes, n_classes)} or {(n_classes, n_classes)}."
  )
  raise ValueError(msg)


def _fits(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
  try:
    return jnp.broadcast_shapes(shape, batch) == batch
  except ValueError:
    return False


def _check_labels(labels: ArrayLike, batch: tuple[int, ...]) -> jax.Array:
  labels = jnp.asarray(labels)
  if labels.shape != batch or not jnp.issubdtype(labels.dtype, jnp.integer):
    msg = (
      f"labels are {labels.dtype}{list(labels.shape)}; expected integers of shape {batch}, one"
      " for each row of logits."
    )
    raise ValueError(msg)
  return labels


def _check_dataset(inputs: Any, labels: np.ndarray, radii: np.ndarray, batch_size: int) -> None:
  if labels.ndim != 1:
    msg = f"labels have shape {labels.shape}; expected (N,), one class index for each example."
    raise ValueError(msg)
  shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
  if not shapes or any(shape[:1] != labels.shape for shape in shapes):
    found = ", ".join(map(str, shapes)) or "no array"
    msg = f"Expected inputs with {len(labels)} examples, as there are labels; found {found}."
    raise ValueError(msg)
  if not np.all(radii >= 0):
    msg = f"radii are {radii.tolist()}; expected distances, at least 0."
    raise ValueError(msg)
  if batch_size < 1:
    msg = f"batch_size is {batch_size}; expected at least 1."
    raise ValueError(msg)


def _batches(starts: range, progress: bool):
  if not progress:
    return starts
  from rich.progress import track

  return track(starts, description="Certifying")
