"""The largest radius whose own ball proves that a class cannot change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.certify.bounds.effort import Effort, check_effort, steps_for
from lipjax.certify.bounds.ellipsoid_pairs import ellipsoid_pairs_for
from lipjax.certify.bounds.layers import Layers
from lipjax.certify.fast import is_traced
from lipjax.certify.margins import certified_radius
from lipjax.certify.pairs import logits_of, of_pairs


def local_certified_radius(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  up_to: float,
  n_steps: int = 8,
  effort: Effort = "default",
) -> Callable[..., jax.Array]:
  r"""A function of the same arguments that gives a radius in which the class cannot change.

  .. math:: \max_k\ \min(r_k,\ \min_{j\ne i} \frac{f_i - f_j}{L_{ij}(r_k)})

  for the class i of the argument, the strict argmax of the logits, with :math:`L_{ij}(r)` the
  bounds of `margin_upper_bounds` on the ball of radius r, and an ellipsoid that is chosen for the
  pair of classes that decides. In small balls few units can switch, and L is small. Each
  :math:`r_k` by itself is a proof: the second number in the minimum falls with r, the best r is
  between both, and they are bisected, from `up_to` on.

  **Cost.** `n_steps` times `margin_upper_bounds`, in one loop: compilation is that of one. Under
  `jax.vmap` a batch at a time; ``jax.lax.map(…, batch_size=…)`` goes through a dataset.

  Guarantee: lower, rounding in computing bounds included, under the conditions of
  `margin_upper_bounds` and `certified_radius`: for the function in exact arithmetic and the logits
  as computed.

  Args:
    fn: any JAX function whose result is one array of the logits of one example: (classes,), or
      with axes of length 1 before the classes.
    argnums: the argument that moves, or the arguments, together in one l2 ball.
    up_to: no larger radius is looked at.
    n_steps: of bisection, at least 1. The interval that the best radius is in is halved by each.
    effort: as in `lipschitz_upper_bound`.

  Returns:
    A function of `fn`'s arguments with a scalar, float32 or wider; 0 where no class is the strict
    argmax. Under ``jax.jit`` and ``jax.vmap`` too.

  Raises:
    ValueError: `up_to` that is no positive number, `n_steps` below 1, and whatever
      `margin_upper_bounds` refuses.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> w = jnp.array([[3.0, 1.0], [1.0, -2.0], [-2.0, 1.0]])
    >>> net = lambda x: w.T @ jax.nn.relu(w @ x - 1)
    >>> x = jnp.array([2.0, 1.0])  # where one unit of three is active
    >>> everywhere = lipjax.certified_radius(net(x), lipjax.margin_upper_bounds(net)(x))
    >>> local = lipjax.local_certified_radius(net, up_to=4.0)(x)
    >>> print(f"{everywhere:.2f} {local:.2f}")
    0.72 1.22

  Reference:
    A ball's own constant: Hein and Andriushchenko (2017), arXiv:1705.08475, theorem 2.1.
  """
  check_effort(effort)
  if not (np.ndim(up_to) == 0 and np.isreal(up_to) and 0 < up_to < np.inf):
    msg = f"up_to is {up_to!r}; expected a positive number."
    raise ValueError(msg)
  if n_steps < 1:
    msg = f"n_steps is {n_steps}; expected at least 1."
    raise ValueError(msg)

  def radius(*args: Any) -> jax.Array:
    logits = logits_of(fn(*args))

    then = functools.partial(_finished, effort, logits)

    def proved(within: jax.Array) -> jax.Array:
      pairs = of_pairs(effort, fn, argnums, args, within, None, then)
      return certified_radius(logits, pairs)

    def step(k: jax.Array, between: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      low, high = between
      within = jnp.where(k == 0, high, low / 2 + high / 2)
      found = proved(within)
      # Bounds that the optimizer leaves a little larger elsewhere may cross: the proof stays.
      return (
        jnp.maximum(low, jnp.minimum(within, found)),
        jnp.minimum(high, jnp.maximum(within, found)),
      )

    dtype = jax.eval_shape(proved, jnp.zeros(())).dtype
    between = jnp.zeros((), dtype), jnp.full((), up_to, dtype)
    if is_traced(args):
      return lax.fori_loop(0, n_steps, step, between)[0]
    # Bounds that are not traced have a program that is compiled once a network.
    for k in range(n_steps):
      between = step(jnp.asarray(k), between)
    return between[0]

  return radius


def _finished(
  effort: Effort, logits: jax.Array, found: tuple[jax.Array, Layers | None]
) -> jax.Array:
  """Bounds of pairs, with an ellipsoid for the one that is to be proved last."""
  pairs, layers = found
  if layers is not None and len(pairs) > 1:
    n, is_own = len(logits), jnp.arange(len(logits)) == jnp.argmax(logits)
    margins = jnp.abs(logits[:, None] - logits).astype(pairs.dtype)
    margins = jnp.where(is_own[:, None] | is_own, margins, jnp.inf)
    steps = steps_for(effort, layers.widths)
    pairs = jnp.fmin(pairs, ellipsoid_pairs_for(layers, n, steps, lax.stop_gradient(margins)))
  return jnp.where(jnp.isnan(pairs), jnp.inf, pairs)
