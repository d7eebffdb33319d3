"""How far norms that are followed during training in ``claims`` are from the exact ones."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lipjax
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.claims_tasks import SMALL, rows_of_epoch
from benchmarks.experiments.claims_train import Choice, Program, start, train_step
from lipjax.commands.demo_data import Split

#: By name: one vector and one step an update, as the papers have it; and lipjax's default.
ONE, SUBSPACE = "one vector", "subspace"
MOST_STEPS = 1000
CHECK = 10  # Steps from one comparison to the next.


class Errors(NamedTuple):
  """Of one training.

  Attributes:
    by_layer: ``{layer: {tracker: share of the exact norm that is missing, one a comparison}}``.
    steps_an_update: that the subspace took; one vector takes 1.
  """

  by_layer: dict[str, dict[str, np.ndarray]]
  steps_an_update: float


class Followed(NamedTuple):
  """What both ways keep from update to update: left vectors by path, and `SingularVectors`."""

  one: dict[str, jax.Array]
  subspace: lipjax.SingularVectors


def track(program: Program, choice: Choice, data: Split) -> Errors:
  """Trains one network, first seed, and compares all along; both ways start at the exact vectors.

  Args:
    program: what to train. Its schedule ends with the last step.
    choice: its rate and strength.
    data: to train on.
  """
  key, layout = jax.random.key(0), program.network.layout
  state = start(program, choice, key)
  vectors = lipjax.init_singular_vectors(state.params, start="converged", layout=layout)
  triplets = lipjax.singular_triplets(state.params, vectors, layout=layout)
  followed = Followed({path: triplet.u for path, triplet in triplets.items()}, vectors)
  found = []
  for i in range(program.n_steps // CHECK):
    carry = state, followed
    (state, followed), sigmas = _advance(program, choice, jax.random.fold_in(key, i), data, carry)
    found.append(_missing(exact_norms(program.network, state.params), sigmas))
  errors = jax.tree.map(lambda *shares: np.array(shares), *found)
  return Errors(errors, float(followed.subspace.steps) / (len(found) * CHECK))


def exact_norms(network: Network, params: Any) -> dict[str, float]:
  """``{path: σ}`` by SVD in float64 of the matrices that the kernels are, written out."""
  kernels = {f"{layer}/kernel": leaves["kernel"] for layer, leaves in params.items()}
  return {path: _exact_norm(network.layout[path], w) for path, w in kernels.items()}


def _exact_norm(operator: lipjax.LinearOperator, w: jax.Array) -> float:
  shape = operator.input_shape(w.shape)
  basis = jnp.eye(math.prod(shape)).reshape(-1, *shape)
  rows = jax.vmap(lambda x: operator.apply(w, x))(basis).reshape(len(basis), -1)
  return float(np.linalg.norm(np.asarray(rows, np.float64), 2))


def _missing(exact, sigmas):
  share = lambda path, sigma: 1 - float(sigma) / exact[path]
  return {
    path.removesuffix("/kernel"): {name: share(path, found[path]) for name, found in sigmas.items()}
    for path in exact
  }


@functools.partial(jax.jit, static_argnums=0)
def _advance(program, choice, key, data, carry):
  """Some updates, each of them followed, and the norms that both have after the last."""

  def step(carry, rows):
    state, followed = carry
    state = train_step(program, choice, state, Split(*(x[rows] for x in data)))
    followed, sigmas = _follow(program.network.layout, state.params, followed)
    return (state, followed), sigmas

  rows = rows_of_epoch(key, len(data.labels), SMALL)[:CHECK]
  carry, sigmas = jax.lax.scan(step, carry, rows)
  return carry, jax.tree.map(lambda x: x[-1], sigmas)


def _follow(layout, params, followed):
  kernels = {f"{layer}/kernel": leaves["kernel"] for layer, leaves in params.items()}
  triplets = {
    path: lipjax.power_iteration(layout[path], w, start=followed.one[path], n_steps=1)
    for path, w in kernels.items()
  }
  vectors = lipjax.update_singular_vectors(params, followed.subspace, layout=layout)
  sigmas = {
    ONE: {path: triplet.sigma for path, triplet in triplets.items()},
    SUBSPACE: lipjax.read_spectral_norms(vectors),
  }
  return Followed({path: triplet.u for path, triplet in triplets.items()}, vectors), sigmas
