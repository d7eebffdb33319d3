"""Norms read out of a state, for logs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.measure.packing import sigma_by_path
from lipjax.measure.vectors import SingularVectors


def read_spectral_norms(state: Any) -> dict[str, jax.Array]:
  """The norms that were measured last, by path, for logging.

  Guarantee: estimates from below. `add_spectral_decay` measures the weights before the
  update (at its latest refresh); `keep_params_in_spectral_ball` the weights that the
  update would have given without it. 0 before the first update.

  Args:
    state: a `SingularVectors`, or any optax state with one of lipjax's somewhere in it (in
      a chain, masked, injected, in `optax.MultiSteps`, in an `nnx.Optimizer`).

  Returns:
    ``{path: sigma}``; several states are merged, the last one wins.

  Raises:
    ValueError: nothing in it tracks norms.

  Example:
    >>> import jax.numpy as jnp, lipjax, optax
    >>> tx = optax.chain(lipjax.add_spectral_decay(0.1), optax.adam(1e-3))
    >>> lipjax.read_spectral_norms(tx.init({"kernel": jnp.ones((2, 2))}))
    {'kernel': Array(0., dtype=float32)}
  """
  return {path: sigma[..., 0] for path, sigma in read_singular_values(state).items()}


def read_singular_values(state: Any) -> dict[str, jax.Array]:
  """The k largest singular values that were measured last, by path.

  Guarantee: estimates from below. The first is what is followed: it is within the
  tolerance, as a rule; those after it are less exact, the last ones least. 0 where a
  weight has fewer, and for values below a thousandth of the first.

  Args:
    state: as in `read_spectral_norms`.

  Returns:
    ``{path: values}``, each of the operator's batch shape and k, largest first.

  Raises:
    ValueError: nothing in it tracks norms.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
    >>> vectors = lipjax.init_singular_vectors(params, k=2)
    >>> vectors = lipjax.update_singular_vectors(params, vectors, n_steps=20)
    >>> [round(float(sigma), 3) for sigma in lipjax.read_singular_values(vectors)["kernel"]]
    [3.0, 2.0]
  """
  is_ours = lambda node: isinstance(node, SingularVectors)
  states = [s for s in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(s)]
  if not states:
    msg = (
      "This state tracks no norms; pass lipjax.SingularVectors, or the state of a chain with"
      " lipjax.add_spectral_decay or lipjax.keep_params_in_spectral_ball in it."
    )
    raise ValueError(msg)
  values = {}
  for vectors in states:
    values |= sigma_by_path(jnp.asarray(vectors.sigma), vectors.paths)
  return dict(sorted(values.items()))


#: Keys of `read_scalars` that are no operators'.
TOTALS = "largest", "sum_of_squares"


def read_scalars(state: Any, *, prefix: str = "spectral_norm/") -> dict[str, jax.Array]:
  r"""What `read_spectral_norms` gives as a flat dictionary of scalars, as loggers take it.

  Guarantee: as `read_spectral_norms`.

  Args:
    state: likewise.
    prefix: of every key.

  Returns:
    ``{prefix + path: sigma}``, of a stack ``path/0``, ``path/1`` and so on; and under
    ``prefix + "largest"`` and ``prefix + "sum_of_squares"`` :math:`\max\sigma_1` and
    :math:`\sum\sigma_1^2`. Scalars, float32 or wider; under ``jax.jit`` too.

  Raises:
    ValueError: as `read_spectral_norms`.

  Example:
    >>> import jax.numpy as jnp, lipjax
    >>> params = {"dense": {"kernel": jnp.diag(jnp.array([3.0, 2.0]))}}
    >>> vectors = lipjax.init_singular_vectors(params, start="converged")
    >>> {key: round(float(x), 3) for key, x in lipjax.read_scalars(vectors, prefix="").items()}
    {'dense/kernel': 3.0, 'largest': 3.0, 'sum_of_squares': 9.0}
  """
  found: dict[str, jax.Array] = {}
  for path, sigma in read_spectral_norms(state).items():
    of_stack = {path: sigma} if sigma.ndim == 0 else _entries(path, sigma)
    found |= {prefix + key: x for key, x in of_stack.items()}
  values = jnp.stack(list(found.values())) if found else jnp.zeros(0)
  totals = jnp.max(values, initial=0), jnp.sum(values**2)
  return found | {prefix + key: x for key, x in zip(TOTALS, totals, strict=True)}


def _entries(path: str, sigma: jax.Array) -> dict[str, jax.Array]:
  """Of the operators of a stack, by their places."""
  return {f"{path}/{'/'.join(map(str, i))}": sigma[i] for i in np.ndindex(sigma.shape)}
