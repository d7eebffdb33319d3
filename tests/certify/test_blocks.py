"""Bounds block by block: where blocks are, never below a slope, and 1 for layers of norm 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal

import lipjax
from lipjax.certify.bounds.blocks import block_bounds, blocks_of
from lipjax.certify.compiled import on_arrays
from lipjax.certify.lipschitz import bounds_by_engine
from lipjax.certify.maps import Known, live, norms_of
from lipjax.certify.norms import compute_norms


def known_of(graph, facts):
  known = Known(graph.nodes, facts)
  order = live(known, graph.outputs)
  compute_norms(norms_of(known, order))
  return known, order


def bound_by_blocks(graph, facts):
  known, order = known_of(graph, facts)
  return block_bounds(known, order, graph.outputs)[graph.outputs[0]]


def n_blocks(fn, *args):
  found = []

  def engine(graph, facts):
    found.append(len(blocks_of(*known_of(graph, facts), graph.outputs)))
    return jnp.zeros(())

  argnums = tuple(range(len(args)))
  on_arrays(engine, fn, argnums, args, None, None)
  return found[0]


SLOW = pytest.mark.slow
W = [normal(i, (8, 8), FLOAT, 0.4) for i in range(6)]


def branch(w, x):
  return x + w @ jnp.tanh(w.T @ x)


@pytest.mark.parametrize(
  ("fn", "n_args", "count"),
  [
    (lambda x: branch(W[1], branch(W[0], x)), 1, 2),
    (lambda x: W[2] @ branch(W[1], W[3] @ branch(W[0], x)), 1, 2),
    (lambda x: branch(W[0], x), 1, 0),  # one is the graph itself
    (lambda x: W[1] @ jnp.tanh(W[0] @ x), 1, 0),  # a chain
    (lambda x, y: branch(W[1], branch(W[0], x)) + y, 2, 0),  # an input goes past all
    (lambda x, y: branch(W[1], branch(W[0], x + y)), 2, 2),
    (lambda x: x + branch(W[1], branch(W[0], x)), 1, 0),  # around both
    (lambda x: branch(W[2], branch(W[1], branch(W[0], x))) + W[3] @ x, 1, 0),
    (lambda x: (lambda y: (branch(W[1], y), y))(branch(W[0], x)), 1, 0),  # two results
  ],
)
def test_blocks_are_where_everything_passes_through(fn, n_args, count):
  assert n_blocks(fn, *[jnp.zeros(8, FLOAT)] * n_args) == count


def attend(w, x):
  x = x.reshape((4, 2))
  q, k = x @ w[:2, :2], x @ w[2:4, :2]
  return (x + jax.nn.softmax(q @ k.T, axis=-1) @ x).ravel()


def gate(w, x):
  return x + jnp.tanh(w @ x) * jax.nn.sigmoid(w.T @ x)


def reshaped(w, x):
  return branch(w, 3 * x.reshape((2, 4)).T.ravel())


@pytest.mark.first(1)
@pytest.mark.parametrize(
  ("layer", "radius"),
  [
    (branch, None),
    (gate, 0.3),
    *(pytest.param(*case, marks=SLOW) for case in ((reshaped, None), (attend, 0.3), (branch, 0.3))),
  ],
)
def test_no_slope_is_larger(layer, radius):
  def fn(x):
    for w in W[:2]:
      x = layer(w, x)
    return x

  x = normal(9, (8,), FLOAT, 0.5)
  found = float(on_arrays(bound_by_blocks, fn, 0, (x,), radius, None)[1])
  lower = float(lipjax.lipschitz_lower_bound(fn, radius=radius)(x))
  product = float(bounds_by_engine(fn, 0, (x,), radius, effort="fast")["product"])
  assert lower <= found <= product


@pytest.mark.thorough
def test_a_ball_that_a_block_does_not_start_from():
  """Slopes are those in the domain, distances those of the block's own beginning."""
  fn = lambda x: branch(W[1], 100 * branch(W[0], x) + 5)
  x = jnp.zeros(8, FLOAT)
  found = on_arrays(bound_by_blocks, fn, 0, (x,), 0.01, None)[1]
  jacobian = np.asarray(jax.jacobian(fn)(x), np.float64)
  assert np.linalg.norm(jacobian, 2) <= found


@pytest.mark.thorough
def test_margins_of_residual_layers_of_norm_1():
  raw = [normal(i, (8, 12), FLOAT) for i in range(2)]
  last = lipjax.orthogonal_map({"kernel": normal(9, (8, 3), FLOAT)})["kernel"]

  def logits(x):
    for w in raw:
      inner, outer = lipjax.sll_kernels(w)
      x = x - jax.nn.relu(x @ inner + 0.1) @ outer
    return x @ last

  pairs = lipjax.margin_upper_bounds(logits, effort="tight")(jnp.zeros(8, FLOAT))
  np.testing.assert_array_less(pairs, 2**0.5 * 1.01)
