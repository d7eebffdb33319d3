"""What a sharded step moves between devices: point 22."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.registry import CASES, assert_close, normal, norms_for_vectors, updates_like
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

ROWS, COLUMNS, STACK = 512, 256, 8
#: Of each operator that is followed: eight singular vectors and the eight of the step before.
VECTORS = 16
MATRIX = ("Dense_0", "kernel")
STACKED = ("ScanBlock_0", "Dense_0", "kernel")
#: Where the weight is, and how it lies on the mesh axes x (4) and y (2).
PLACES = {
  "replicated": (MATRIX, P()),
  "rows": (MATRIX, P("x")),
  "columns": (MATRIX, P(None, "x")),
  "rows_y": (MATRIX, P("y")),
  "columns_y": (MATRIX, P(None, "y")),
  "both": (MATRIX, P("x", "y")),
  "both_swapped": (MATRIX, P("y", "x")),
  "rows_by_all": (MATRIX, P(("x", "y"))),
  "columns_by_all": (MATRIX, P(None, ("x", "y"))),
  "stack": (STACKED, P("x")),
  "stack_by_all": (STACKED, P(("x", "y"))),
  "stack_rows": (STACKED, P("x", "y")),
  "stack_columns": (STACKED, P("x", None, "y")),
  "inside_stack": (STACKED, P(None, "x", "y")),
  "inside_stack_columns": (STACKED, P(None, None, "x")),
}
#: Enough for a transformation whose products with vectors are those of another case.
FEW = ("columns", "both", "stack_rows")
ROWS_OF_TESTS = [
  pytest.param(
    case, place, mesh, id=f"{case.name}-{place}-{mesh}", marks=pytest.mark.slow if is_slow else ()
  )
  for case in CASES
  if not case.gathers
  for place in (PLACES if case.name in ("spectral", "ball_scale") else FEW)
  for mesh in ("auto", "explicit")
  for is_slow in [case.variant or (place not in FEW and (case.name, mesh) != ("spectral", "auto"))]
]
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter",
               "collective-broadcast")  # fmt: skip


def moved(hlo):
  """``[(op, elements)]``: every collective and the size of its largest result."""
  found = []
  pattern = rf"= (.*?) (({'|'.join(COLLECTIVES)})(-start)?)\("
  for match in re.finditer(pattern, hlo):
    shapes = re.findall(r"\[([\d,]*)\]", match[1])
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    found.append((match[2], max(sizes)))
  return found


def test_the_parser_sees_a_gather():
  """The check below can fail: a step that gathers is caught, in both spellings."""
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  w = jax.device_put(jnp.ones((ROWS, COLUMNS)), NamedSharding(mesh, P("x", "y")))
  gather = jax.jit(lambda w: w + 1, out_shardings=NamedSharding(mesh, P()))
  assert ("all-gather", ROWS * COLUMNS) in moved(gather.lower(w).compile().as_text())
  text = "%a = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(f32[2,8]{1,0} %b), dims={0}"
  assert moved(text) == [("all-gather-start", 128)]


@pytest.mark.parametrize(("transformation", "place", "mesh"), ROWS_OF_TESTS, indirect=["mesh"])
def test_no_weight_is_moved(transformation, mesh, place):
  """Point 22: collectives carry vectors, updates stay where they were, numbers are right.

  Without the transformations that need whole matrices, as their documentation says.
  """
  path, spec = PLACES[place]
  plain, grads, expected = on_one_device(transformation.name, path)
  sharding = NamedSharding(mesh, spec)
  p, g = jax.device_put(plain, sharding), jax.device_put(grads, sharding)
  tx, train = step_of(transformation)
  state = tx.init(p)
  compiled = jax.jit(train).lower(p, state, g).compile()
  n_weight = jax.tree.leaves(p)[0].addressable_shards[0].data.size
  n_vectors = math.prod(shape_of(path)[:-2]) * VECTORS * (ROWS + COLUMNS + 2)
  assert n_vectors < n_weight
  assert [(op, n) for op, n in moved(compiled.as_text()) if n > n_vectors] == []

  u, after, state = compiled(p, state, g)
  for array in jax.tree.leaves((u, after)):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
  # A product of 512 terms is summed in another order.
  assert_close(on_host(norms_for_vectors((u, after, state))), expected, 1024)


def shape_of(path):
  return (ROWS, COLUMNS) if len(path) == 2 else (STACK, ROWS, COLUMNS)


def on_host(tree):
  return jax.tree.map(np.asarray, tree)


def step_of(transformation):
  tx = transformation.chain(optax.sgd(0.1))

  def train(p, state, g):
    u, state = tx.update(g, state, p)
    return u, optax.apply_updates(p, u), state

  return tx, train


@functools.cache
def on_one_device(name, path):
  """Params, their gradients, and what a step makes of them, for all meshes and placements."""
  tree = shape_of(path)
  for part in reversed(path):
    tree = {part: tree}
  plain = normal(0, tree)
  grads = updates_like(plain)
  tx, train = step_of(next(case for case in CASES if case.name == name))
  after = jax.jit(train)(plain, tx.init(plain), grads)
  return on_host((plain, grads, norms_for_vectors(after)))
