"""One optimizer update with spectral decay, against AdamW's alone."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lipjax
from benchmarks.speed.timing import Case, compare, compile_case
from benchmarks.speed.trees import make_tree

#: Blocks of ten steps: enough for the quartiles to settle on two cores.
BLOCKS = {"tiny": 100, "mlp": 60, "transformer": 20}


def run(tree: str, blocks: int | None = None) -> dict[str, Any]:
  """Rows for one tree: AdamW, spectral decay before it, and the bandwidth limits."""
  adamw = lambda: optax.adamw(1e-3)
  decay = lipjax.add_spectral_decay
  chains = {
    "adamw": adamw(),
    "adamw_again": adamw(),
    "spectral_decay": optax.chain(decay(0.01), adamw()),
    "spectral_decay_every_1": optax.chain(decay(0.01, every=1), adamw()),
    "spectral_decay_every_10": optax.chain(decay(0.01, every=10), adamw()),
    "given_terms": optax.chain(given_terms(0.01), adamw()),
    "naive_per_leaf": optax.chain(naive_spectral_decay(0.01), adamw()),
    "one_extra_read": optax.chain(extra_reads(1), adamw()),
    "two_extra_reads": optax.chain(extra_reads(2), adamw()),
  }
  params = make_tree(tree)
  gradients = noise(params)
  cases = {name: update_case(chain, params, gradients) for name, chain in chains.items()}
  rows = compare(cases, baseline="adamw", blocks=blocks or BLOCKS[tree], steps=10, keep_carry=True)
  for name, case in cases.items():
    rows[name] |= pace_of(case.carry[1])
  leaves = jax.tree.leaves(params)
  return {
    "benchmark": "update",
    "tree": tree,
    "leaves": len(leaves),
    "megabytes": sum(leaf.nbytes for leaf in leaves) / 1e6,
    "rows": rows,
  }


def update_case(chain: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Case:
  """A jitted update with params and state donated, as a training loop runs it."""
  params = jax.tree.map(jnp.copy, params)

  def step(carry, gradients):
    params, state = carry
    updates, state = chain.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  return compile_case(step, (params, chain.init(params)), turns=gradients, donate=True)


def noise(params: Any) -> list[Any]:
  """Random gradients with mean 0, another tree every step.

  Of one and the same, Adam makes a march of every weight by 2 % an update, after which no norm
  is what it was; then a refresh is due at every update (``every_1``).
  """
  leaves, treedef = jax.tree.flatten(params)

  def tree(seed):
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
      [1e-2 * jax.random.normal(key, w.shape) for key, w in zip(keys, leaves, strict=True)]
    )

  first, second = tree(0), tree(1)
  negated = lambda tree: jax.tree.map(jnp.negative, tree)
  return [first, second, negated(first), negated(second)]


def pace_of(state: Any) -> dict[str, float]:
  """Steps of block power iteration an update, and updates from one refresh to the next."""
  is_ours = lambda node: isinstance(node, lipjax.SpectralDecayState)
  ours = [node for node in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(node)]
  if not ours:
    return {}
  (found,) = ours
  return {
    "steps_per_update": float(found.vectors.steps) / float(found.count),
    "last_interval": float(found.pace.interval),
  }


def given_terms(strength: float) -> optax.GradientTransformation:
  """What decay costs at least: rank-one terms of vectors that nobody measures.

  One array for the vectors of all leaves of a shape: with one a leaf it is slower.
  """

  def init(params):
    counts = collections.Counter(w.shape for w in jax.tree.leaves(params))
    return {shape: [jnp.ones((n, size)) for size in shape] for shape, n in counts.items()}

  def update(updates, state, params=None):
    del params
    rows = {shape: zip(*vectors, strict=True) for shape, vectors in state.items()}

    def one(g):
      u, v = next(rows[g.shape])
      return g + strength * u[:, None] * v[None, :]

    return jax.tree.map(one, updates), state

  return optax.GradientTransformation(init, update)


def naive_spectral_decay(strength: float) -> optax.GradientTransformation:
  """What a user would write: leaf by leaf, `W.T @ u`, state shaped like the params."""

  def init(params):
    return jax.tree.map(lambda w: jnp.ones(w.shape[1]) / w.shape[1] ** 0.5, params)

  def update(updates, state, params):
    def one(g, u, w):
      v = w @ u
      v = v / jnp.linalg.norm(v)
      y = w.T @ v
      sigma = jnp.linalg.norm(y)
      return g + strength * sigma * jnp.outer(v, y / sigma), y / sigma

    pairs = jax.tree.map(one, updates, state, params)
    is_pair = lambda x: isinstance(x, tuple)
    return tuple(jax.tree.map(lambda p, i=i: p[i], pairs, is_leaf=is_pair) for i in (0, 1))

  return optax.GradientTransformation(init, update)


def extra_reads(times: int) -> optax.GradientTransformation:
  """The bandwidth limit: AdamW's update with the weights read `times` more times.

  Each read is a full reduction that the next one depends on, so that XLA can neither
  drop it nor merge it with another.
  """

  def update(updates, state, params):
    total = jnp.zeros(())
    for _ in range(times):
      sums = [jnp.max(w + total) for w in jax.tree.leaves(params)]
      total = 1e-30 * jnp.stack(sums).sum()
    return jax.tree.map(lambda g: g + total, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
