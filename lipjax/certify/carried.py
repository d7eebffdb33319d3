"""Bounds to train through: the ellipsoid's multipliers are carried from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lipjax.certify.bounds.ellipsoid import first_multipliers
from lipjax.certify.bounds.ellipsoid_pairs import Carried, ellipsoid_pairs_carried, start_carrying
from lipjax.certify.bounds.layers import Layers, prepared
from lipjax.certify.pairs import of_pairs


class CarriedBounds(NamedTuple):
  """A pair of functions, as optax's gradient transformations are.

  Attributes:
    init: ``state = init(*args)`` of the function's arguments; a pytree of arrays.
    update: ``pairs, state = update(state, *args)``, bounds as of `margin_upper_bounds`.
  """

  init: Callable[..., Carried | None]
  update: Callable[..., tuple[jax.Array, Carried | None]]


def carried_margin_upper_bounds(
  fn: Callable[..., Any],
  argnums: int | Sequence[int] = 0,
  *,
  radius: Any | None = None,
  box: tuple[Any, Any] | None = None,
  n_steps: int = 1,
) -> CarriedBounds:
  r"""`margin_upper_bounds` for training: tight at a few steps a call, with a state.

  Multipliers of the ellipsoid that were good before an update of the weights are good after it.
  ``init`` improves them 50 times, ``update`` `n_steps` times more each; whatever they are, the
  bounds hold. A loss on margins in units of them, :math:`(f_i - f_j)/L_{ij}`, is a loss on
  certified radii.

  Guarantee: that of `margin_upper_bounds`, at every call.

  Args:
    fn: any JAX function whose result is one array of the logits of one example.
    argnums: the argument that moves, or the arguments.
    radius: as in `lipschitz_upper_bound`.
    box: likewise.
    n_steps: of gradient descent on the multipliers at each call; 0 leaves them alone.

  Returns:
    `CarriedBounds`. Differentiable in the arguments that do not move; derivatives are for
    multipliers that are fixed, which at the best ones makes no difference. Under ``jax.jit`` and
    in ``jax.lax.scan`` too. Graphs too large for an ellipsoid have no state, and bounds by norms.

  Raises:
    ValueError: as `margin_upper_bounds`; `n_steps` below 0; a state of another function.

  Example:
    >>> import jax, jax.numpy as jnp, lipjax
    >>> net = lambda params, x: params @ jax.nn.relu(x)
    >>> params, x = jnp.array([[4.0, 1.0], [-4.0, 0.0]]), jnp.zeros(2)
    >>> bounds = lipjax.carried_margin_upper_bounds(net, argnums=1)
    >>> state = bounds.init(params, x)
    >>> for step in range(3):
    ...   pairs, state = bounds.update(state, 0.9**step * params, x)
    ...   print(f"{pairs[0, 1]:.2f}")
    8.06
    7.26
    6.53
  """
  if n_steps < 0:
    msg = f"n_steps is {n_steps}; expected at least 0."
    raise ValueError(msg)

  def init(*args: Any) -> Carried | None:
    def then(found: tuple[jax.Array, Layers | None]) -> Carried | None:
      pairs, layers = found
      return start_carrying(layers, len(pairs)) if layers is not None and len(pairs) > 1 else None

    return of_pairs("default", fn, argnums, args, radius, box, then)

  def update(state: Carried | None, *args: Any) -> tuple[jax.Array, Carried | None]:
    pairs, layers = of_pairs("default", fn, argnums, args, radius, box, lambda found: found)
    _check(state, layers if len(pairs) > 1 else None)
    if layers is not None and state is not None:
      better, state = ellipsoid_pairs_carried(layers, len(pairs), n_steps, state)
      pairs = jnp.fmin(pairs, better)
    return jnp.where(jnp.eye(len(pairs), dtype=bool), 0, pairs), state

  return CarriedBounds(init, update)


def _check(state: Any, layers: Layers | None) -> None:
  """Raises where a state is not that of such layers."""
  expected: Any = None
  if layers is not None:
    expected = jax.eval_shape(lambda raw: first_multipliers(prepared(raw)), layers.layers)
  given = state.multipliers if isinstance(state, Carried) else state
  shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
  if shapes(given) != shapes(expected):
    of = lambda tree: jax.tree.map(jnp.shape, tree)
    msg = (
      "The state is not that of this function, of arguments of these shapes and of this domain;"
      f" pass what init(*args) or update returned for them. Its multipliers are {of(given)};"
      f" expected {of(expected)}."
    )
    raise ValueError(msg)
