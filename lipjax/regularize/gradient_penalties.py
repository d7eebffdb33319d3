"""Penalties on the norm of a function's gradient in its input, to add to a loss."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lipjax.measure.scaling import nonzero, norm_and_direction
from lipjax.operators.paths import path_string
from lipjax.operators.products import compute_dtype

Sides = Literal["two", "one"]


def gradient_penalty(
  fn: Callable[[Any], Any],
  x: Any,
  *,
  target: float | jax.Array = 1.0,
  sides: Sides = "two",
) -> jax.Array:
  r"""A penalty on the norm of each sample's input gradient, to add to a loss.

  :math:`\frac1n\sum_i (\|\nabla_{x_i} f(x_i)\|-\tau)^2` for ``sides="two"``,
  :math:`\frac1n\sum_i (\|\nabla_{x_i} f(x_i)\|-\tau)_+^2` for ``"one"``, with the l2
  norm over all axes of a sample and all leaves of `x` together. The gradients are
  those of :math:`\sum_i f(x_i)`, which is right where `fn` treats samples one by one;
  batch normalization couples them, so use layer or instance normalization.

  The derivative in the parameters that `fn` closes over is of second order and costs
  about one more forward and two more backward passes through `fn`: for a two-layer
  network 4 (ReLU) to 5.5 (tanh) times the arithmetic of a forward pass.

  Guarantee: exact but for rounding, at these points. The largest of the norms is a
  lower bound of the Lipschitz constant of `fn`; the penalty bounds nothing elsewhere.

  Args:
    fn: maps a batch like `x` to one number per sample, shape (B,) or (B, 1): a critic,
      or a supervised model's loss per sample. It must not average over the batch.
    x: a floating-point array, or a pytree of them, with the batch as the first axis
      (B, ...) of each. Integer inputs (labels, tokens) belong inside `fn`.
    target: :math:`\tau \ge 0`, a number or a traced scalar.
    sides: ``"two"`` also pulls norms below the target up to it; ``"one"`` does not.

  Returns:
    A scalar, float32 or wider; 0 for an empty batch, NaN where a gradient is not
    finite. At a gradient of zero the norm has derivative 0. Norms are safe at any
    scale; the penalty itself is infinite once its square overflows, above a norm of
    1.8e19 in float32, and its derivative still right.

  Raises:
    ValueError: an output that is not one number per sample, an input that is not
      floating-point or without a common batch axis, a negative or non-scalar target,
      unknown sides, or a `fn` that cannot be called.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> w = jnp.array([3.0, 4.0])
    >>> x = jnp.ones((8, 2))
    >>> penalty = lambda w: lipjax.gradient_penalty(lambda x: x @ w, x)
    >>> float(penalty(w))  # (5 - 1)**2
    16.0
    >>> [round(float(g), 4) for g in jax.grad(penalty)(w)]  # 2 * (5 - 1) * w / 5
    [4.8, 6.4]

  Reference:
    Gulrajani et al. (2017), arXiv:1704.00028, equation 3; one-sided: Petzka et al.
    (2018), arXiv:1709.08894.
  """
  if not callable(fn):
    msg = (
      f"Expected a function of a batch, such as lambda x: model.apply(params, x); got {fn!r}, which"
      " cannot be called."
    )
    raise ValueError(msg)
  if sides not in get_args(Sides):
    msg = f"sides is {sides!r}; expected one of {', '.join(map(repr, get_args(Sides)))}."
    raise ValueError(msg)
  _check_target(target)
  x, n = _as_batch(x, "x")
  values, pullback = jax.vjp(fn, x)
  _check_output(values, n)
  # The gradient of the sum, without the sum, which could overflow.
  gradients = jax.tree.leaves(pullback(jnp.ones_like(values)))
  dtype = compute_dtype(jnp.result_type(*gradients))
  norms = _norms([g.astype(dtype) for g in gradients])
  excess = norms - jnp.asarray(target, dtype)
  if sides == "one":
    excess = jnp.maximum(excess, 0)
  return jnp.sum(jnp.square(excess)) / max(n, 1)


def wgan_gradient_penalty(
  critic: Callable[[Any], Any],
  real: Any,
  fake: Any,
  key: jax.Array,
  *,
  target: float | jax.Array = 1.0,
  sides: Sides = "two",
) -> jax.Array:
  r"""`gradient_penalty` between real and generated samples, as in WGAN-GP.

  Taken at :math:`\hat x_i = \varepsilon_i x_i + (1-\varepsilon_i)\tilde x_i` with one
  :math:`\varepsilon_i \sim U(0, 1)` per sample, the same for all its axes and leaves.

  The critic's loss is
  ``mean(critic(fake)) - mean(critic(real)) + 10 * wgan_gradient_penalty(...)``.
  Costs and caveats are those of `gradient_penalty`.

  Guarantee: exact but for rounding, at the points drawn; no bound elsewhere.

  Args:
    critic: maps a batch like `real` to one number per sample, shape (B,) or (B, 1).
    real: a floating-point array (B, ...), or a pytree of them: :math:`x`.
    fake: generated samples :math:`\tilde x`, of the same structure, shapes and dtypes.
    key: a random key; a new one every step.
    target: :math:`\tau \ge 0`, a number or a traced scalar.
    sides: ``"two"`` or ``"one"``, as for `gradient_penalty`.

  Returns:
    A scalar, float32 or wider.

  Raises:
    ValueError: real and fake samples that differ in structure, shape or dtype, and
      whatever `gradient_penalty` refuses.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> real, fake = jnp.ones((8, 2)), jnp.zeros((8, 2))
    >>> critic = lambda x: 0.5 * jnp.sum(x**2, axis=-1)  # its gradient is x
    >>> key = jax.random.key(0)
    >>> float(lipjax.wgan_gradient_penalty(critic, real, fake, key, target=2.0, sides="one"))
    0.0

  Reference:
    Gulrajani et al. (2017), arXiv:1704.00028, equation 3 and algorithm 1.
  """
  real, n = _as_batch(real, "real")
  fake, _ = _as_batch(fake, "fake")
  _check_alike(real, fake)
  dtype = compute_dtype(jnp.result_type(*jax.tree.leaves(real)))
  epsilon = jax.random.uniform(key, (n,), dtype)

  def mix(real, fake):
    e = _spread(epsilon, real.ndim)
    return (e * real.astype(dtype) + (1 - e) * fake.astype(dtype)).astype(real.dtype)

  return gradient_penalty(critic, jax.tree.map(mix, real, fake), target=target, sides=sides)


@jax.custom_jvp
def _norms(gradients: list[jax.Array]) -> jax.Array:
  """The l2 norm of each sample's gradient, over its axes and all leaves.

  Its derivative goes along the unit direction, not through the squares and the
  root: those would overflow at large scales and divide by zero at zero.
  """
  norms = jnp.stack([norm_and_direction(g, 1)[0] for g in gradients], axis=-1)
  return norm_and_direction(norms, 1)[0]


@_norms.defjvp
def _(primals, tangents):
  (gradients,), (dots,) = primals, tangents
  norms = _norms(gradients)

  def along(g, dg):
    direction = g / _spread(nonzero(norms), g.ndim)
    return jnp.sum(direction * dg, axis=tuple(range(1, g.ndim)))

  return norms, sum(map(along, gradients, dots), start=jnp.zeros_like(norms))


def _spread(per_sample: jax.Array, ndim: int) -> jax.Array:
  return jnp.expand_dims(per_sample, tuple(range(1, ndim)))


def _as_batch(tree: Any, name: str) -> tuple[Any, int]:
  """`tree` with JAX arrays as leaves, and their common first axis."""
  tree = jax.tree.map(jnp.asarray, tree)
  shapes = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    label = f"{name} (leaf {path_string(key_path)!r})" if key_path else name
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      msg = (
        f"{label} is {leaf.dtype}, and a gradient needs floating-point inputs; cast it, as in"
        " x.astype(jnp.float32), or keep it out of the penalty: lambda x: loss(x, labels)."
      )
      raise ValueError(msg)
    if leaf.ndim == 0:
      msg = f"{label} is a scalar; expected a batch axis first: for one sample pass x[None]."
      raise ValueError(msg)
    shapes[label] = leaf.shape
  sizes = {shape[0] for shape in shapes.values()}
  if len(sizes) != 1:
    found = ", ".join(f"{label} {shape}" for label, shape in shapes.items()) or "no array"
    msg = f"Expected arrays with one common batch axis, the first, in {name}; found {found}."
    raise ValueError(msg)
  return tree, sizes.pop()


def _check_target(target: Any) -> None:
  if jnp.shape(target) != ():
    msg = f"target has shape {jnp.shape(target)}; expected a number or a scalar array."
    raise ValueError(msg)
  if isinstance(target, numbers.Real) and not float(target) >= 0:
    msg = f"target is {target}; expected a norm, a number of at least 0."
    raise ValueError(msg)


def _check_output(values: Any, n: int) -> None:
  if not hasattr(values, "shape"):
    msg = (
      f"The function returned a {type(values).__name__}; expected one array, one number per"
      " sample. Return that part alone, as in lambda x: model(x)[0]."
    )
    raise ValueError(msg)
  if values.shape not in ((n,), (n, 1)):
    msg = (
      f"The function returned shape {values.shape} for a batch of {n}; expected one number per"
      f" sample, ({n},) or ({n}, 1). Do not average over the batch; for a model with several"
      " outputs pass its loss per sample, as in lambda x:"
      " optax.softmax_cross_entropy_with_integer_labels(model(x), labels)."
    )
    raise ValueError(msg)
  if not jnp.issubdtype(values.dtype, jnp.floating):
    msg = f"The function returned {values.dtype}; expected floating-point numbers."
    raise ValueError(msg)


def _check_alike(real: Any, fake: Any) -> None:
  structures = jax.tree.structure(real), jax.tree.structure(fake)
  if structures[0] != structures[1]:
    msg = f"real and fake differ in structure: {structures[0]} and {structures[1]}."
    raise ValueError(msg)
  for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(fake), strict=True):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
      msg = (
        f"real is {a.dtype}{list(a.shape)} and fake is {b.dtype}{list(b.shape)}; each sample is"
        " mixed with one of the same shape and dtype: cut or cast one of them."
      )
      raise ValueError(msg)
