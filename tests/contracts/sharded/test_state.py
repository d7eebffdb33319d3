"""State and numbers on a mesh of eight devices: points 11, 12, 16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.registry import (
  CASES,
  assert_close,
  normal,
  norms_for_vectors,
  run,
  types,
  updates_like,
)
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MESHES = ("auto", "explicit", "explicit_without_set_mesh")
SHAPES = {
  "Dense_0": {"kernel": (16, 8), "bias": (8,)},
  "Dense_1": {"kernel": (8, 16), "bias": (16,)},
  "LayerNorm_0": {"scale": (16,)},
}
SPECS = {
  "Dense_0": {"kernel": P("x", "y"), "bias": P("y")},
  "Dense_1": {"kernel": P(None, ("x", "y")), "bias": P(("x", "y"))},
  "LayerNorm_0": {"scale": P("x")},
}


def put(tree, specs, mesh):
  shard = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
  return jax.tree.map(shard, tree, specs)


def gathered(tree):
  return jax.tree.map(np.asarray, tree)


# Step by step on the one mesh where each operation has to say what its axes become.
WAYS = [
  *(
    pytest.param(mesh, True, id=f"{mesh}-jit", marks=[pytest.mark.thorough] * (mesh != "explicit"))
    for mesh in MESHES
  ),
  pytest.param("explicit", False, id="explicit-eager"),
  *(
    pytest.param(mesh, False, id=f"{mesh}-eager", marks=pytest.mark.slow)
    for mesh in MESHES
    if mesh != "explicit"
  ),
]


@pytest.mark.parametrize(("mesh", "jitted"), WAYS, indirect=["mesh"])
def test_state_keeps_its_types(case, mesh, jitted):
  """Points 11 and 12: typeof(init) is typeof(update), leaf by leaf, and so are shardings."""
  tx = case.build()
  p = put(normal(0, SHAPES), SPECS, mesh)
  g = jax.tree.map(lambda x: 0.1 * x, p)
  update = jax.jit(tx.update) if jitted else tx.update
  start = state = tx.init(p)
  for _ in range(2):
    u, state = update(g, state, p)
    assert types(state) == types(start)
    assert types(u) == types(g)
  for after, before in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
    assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
  if jitted:
    assert update._cache_size() == 1


@pytest.mark.parametrize("n", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 6, 7))])
def test_mesh_of_any_size(case, n):
  """Points 2 and 12: one executable on meshes whose axes are no powers of two."""
  mesh = jax.make_mesh((n,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
  shapes = {f"Dense_{i}": {"kernel": (n, n * k)} for i, k in enumerate([1, 2, 4] * 2 + [8])}
  p = jax.device_put(normal(0, shapes), NamedSharding(mesh, P("x")))
  tx = case.build()
  state, update = tx.init(p), jax.jit(tx.update)
  for _ in range(2):
    _, state = update(p, state, p)
  assert update._cache_size() == 1


def test_jitted_init(case, mesh):
  """Point 12: a jitted `init` gives the types of the plain one and feeds `update`.

  A program whose result does not depend on its argument runs on that argument's mesh only
  under `jax.set_mesh`; without, the first step's types are those of all later ones.
  """
  tx = case.build()
  p = put(normal(0, SHAPES), SPECS, mesh)
  state, update = jax.jit(tx.init)(p), jax.jit(tx.update)
  if not jax.sharding.get_abstract_mesh().empty:
    assert types(state) == types(tx.init(p))
  else:
    _, state = update(p, state, p)
  _, after = update(p, state, p)
  assert types(after) == types(state)


def test_abstract_sharded_init(case, mesh):
  """Points 10 and 12: `init` on sharded `ShapeDtypeStruct`s has the types of the real one."""
  tx, p = case.build(), put(normal(0, SHAPES), SPECS, mesh)
  struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  abstract = jax.eval_shape(tx.init, jax.tree.map(struct, p))
  shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shape(abstract) == shape(tx.init(p))


def test_training_equals_one_device(case, mesh):
  """Points 11 and 12: three steps on the mesh are three steps without, but for rounding."""
  plain, grads, alone = on_one_device(case.name)
  tx = case.chain(optax.adam(0.05))
  sharded = run(tx, put(plain, SPECS, mesh), 3, put(grads, SPECS, mesh))
  assert_close(gathered(norms_for_vectors(sharded)), alone, 512)


@functools.cache
def on_one_device(name):
  """Params, their gradients, and what three steps make of them, for all meshes."""
  tx = next(case for case in CASES if case.name == name).chain(optax.adam(0.05))
  plain = normal(0, SHAPES)
  grads = updates_like(plain)
  return gathered((plain, grads, norms_for_vectors(run(tx, plain, 3, grads))))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_nnx_optimizer(case, kind):
  """Point 16: `nnx.Optimizer` of a sharded model under `nnx.jit` on both kinds of mesh."""
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
  specs = {"kernel": P("x", "y"), "bias": P("y")}
  tx = case.chain(optax.sgd(0.1))

  @nnx.jit
  def train(model, optimizer, grads):
    optimizer.update(model, grads)

  with jax.set_mesh(mesh):
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    plain = gathered(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    nnx.update(model, put(plain, specs, mesh))
    grads = jax.tree.map(lambda p: 0.5 * p, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = types(nnx.as_pure(nnx.state(optimizer)))
    for _ in range(2):
      train(model, optimizer, grads)
    assert types(nnx.as_pure(nnx.state(optimizer))) == before
    assert model.kernel[...].sharding.is_equivalent_to(NamedSharding(mesh, specs["kernel"]), 2)
    actual = gathered(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  plain = jax.tree.map(jnp.asarray, plain)
  _, expected, _ = run(tx, plain, 2, jax.tree.map(lambda p: 0.5 * p, plain))
  assert_close(actual, gathered(expected), 256)
