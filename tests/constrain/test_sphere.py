"""Weights on spheres, and radii and strengths that depend on an operator's size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FLOAT, dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution, Dense

EPS = float(jnp.finfo(FLOAT).eps)
OPERATORS = {
  "dense": (Dense(), (12, 8)),
  "large": (Dense(), (90, 70)),
  "attention": (Dense((0,), (1, 2)), (6, 2, 3)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 5, 4)),
  "torch": (Dense((1,), (0,)), (4, 9)),
  "convolution": (Convolution((6, 6)), (3, 3, 2, 4)),
}
PARAMS = {name: normal(i, shape) for i, (name, (_, shape)) in enumerate(OPERATORS.items())}
LAYOUT = {name: operator for name, (operator, _) in OPERATORS.items()}
MATRICES = [name for name in OPERATORS if name != "convolution"]


def exact(norm, name, w):
  """In float64, all slices or all lines."""
  operator, w = LAYOUT[name], np.asarray(w, np.float64)
  if isinstance(operator, Convolution):
    w = dense_convolution(operator, w)
    return top_sigma(w) if norm == "spectral" else np.linalg.norm(PARAMS[name])
  with jax.enable_x64(True):
    matrix = np.asarray(operator.matrix(jnp.asarray(w)))
  match norm:
    case "spectral":
      return np.linalg.norm(matrix, 2, axis=(-2, -1))
    case "frobenius":
      return np.linalg.norm(matrix, axis=(-2, -1))
  return np.linalg.norm(matrix, axis={"rows": -1, "columns": -2}[norm])


def of(norm):
  """The params that have such a norm, and their layout."""
  names = OPERATORS if norm == "spectral" else MATRICES
  return {name: PARAMS[name] for name in names}, {name: LAYOUT[name] for name in names}


@pytest.mark.first(2)
@pytest.mark.parametrize("norm", ["spectral", "frobenius", "rows", "columns"])
def test_norms_are_the_radius(norm):
  params, layout = of(norm)
  projected = lipjax.project_sphere(params, 1.7, norm=norm, layout=layout)
  for name, w in projected.items():
    np.testing.assert_allclose(exact(norm, name, w), 1.7, rtol=4 * EPS)
    assert w.dtype == params[name].dtype
    direction = np.asarray(w / params[name])
    assert norm in ("rows", "columns") or np.ptp(direction, axis=(-2, -1)).max() < 1e-5


@pytest.mark.first(2)
@pytest.mark.parametrize("norm", ["spectral", "frobenius", "rows", "columns"])
def test_norms_stay_the_initial_ones(norm):
  params, layout = of(norm)
  first = {name: exact(norm, name, w) for name, w in params.items()}
  kept = lipjax.keep_params_on_sphere("initial", norm=norm, layout=layout)
  tx = optax.chain(optax.adam(0.1), kept)
  state, update = tx.init(params), jax.jit(tx.update)
  for i in range(8):
    gradients = {name: normal(20 + i, w.shape) - w for name, w in params.items()}
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for name, w in params.items():
      np.testing.assert_allclose(
        exact(norm, name, w), first[name], rtol=1e-2 if norm == "spectral" else 1e-5
      )
  if norm == "spectral":
    assert set(lipjax.read_spectral_norms(state)) == set(params)


def test_half_precision_and_updates_of_another_dtype():
  params = {"kernel": normal(0, (20, 10)).astype(jnp.bfloat16)}
  tx = lipjax.keep_params_on_sphere(3.0, norm="frobenius")
  updates, _ = tx.update({"kernel": normal(1, (20, 10))}, tx.init(params), params)
  after = optax.apply_updates(params, updates)["kernel"]
  assert after.dtype == jnp.bfloat16
  assert np.linalg.norm(np.asarray(after, np.float64)) == pytest.approx(3, rel=2e-2)


@pytest.mark.parametrize("norm", ["spectral", "frobenius", "rows", "columns"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_numbers_of_any_size(norm, scale):
  params = {"kernel": scale * PARAMS["dense"].at[0].set(0)}
  projected = np.asarray(lipjax.project_sphere(params, 2.0, norm=norm)["kernel"])
  found = exact(norm, "dense", projected)
  np.testing.assert_allclose(found[found > 0] if np.ndim(found) else found, 2, rtol=1e-5)
  assert not projected[0].any()


@pytest.mark.parametrize("norm", ["spectral", "frobenius", "rows", "columns"])
def test_what_has_no_direction_stays(norm):
  zero = {"kernel": jnp.zeros((4, 3))}
  assert not lipjax.project_sphere(zero, 2.0, norm=norm)["kernel"].any()
  wrong = {"kernel": jnp.ones((4, 3)).at[1, 1].set(jnp.nan)}
  projected = lipjax.project_sphere(wrong, 2.0, norm=norm)["kernel"]
  assert np.isnan(projected).sum() == 1
  if norm == "spectral":
    np.testing.assert_array_equal(projected, wrong["kernel"])


def test_scales_of_normalizations():
  params = {"scale": jnp.array([0.5, -2.0, 0.0])}
  for norm, expected in (
    ("spectral", [0.75, -3, 0]),
    ("rows", [3, -3, 0]),
    ("columns", [3, -3, 0]),
  ):
    projected = lipjax.project_sphere(params, lipjax.PerOperator(3.0), norm=norm)
    np.testing.assert_allclose(projected["scale"], expected)


def test_a_number_per_operator():
  value = lipjax.PerOperator(3.0)
  projected = lipjax.project_sphere(PARAMS, value, layout=LAYOUT)
  sizes = {"dense": 8 / 12, "large": 70 / 90, "attention": 1, "stacked": 4 / 5, "torch": 4 / 9}
  for name, ratio in (sizes | {"convolution": 2}).items():
    np.testing.assert_allclose(exact("spectral", name, projected[name]), 3 * ratio**0.5, rtol=1e-5)
  params, layout = of("rows")
  rows = lipjax.project_sphere(params, value, norm="rows", layout=layout)
  np.testing.assert_allclose(exact("rows", "torch", rows["torch"]), 1, rtol=1e-5)
  columns = lipjax.project_sphere(params, value, norm="columns", layout=layout)
  np.testing.assert_allclose(exact("columns", "torch", columns["torch"]), 6, rtol=1e-5)
  constant = lipjax.project_sphere(params, lipjax.PerOperator(2.0, power=0.0), layout=layout)
  np.testing.assert_allclose(exact("spectral", "torch", constant["torch"]), 2, rtol=1e-5)


def test_the_spectral_condition_keeps_the_size_of_entries():
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  for shape in ((64, 16), (16, 64)):
    w = np.asarray(
      lipjax.project_sphere({"kernel": normal(0, shape)}, lipjax.PerOperator())["kernel"]
    )
    u, _, _ = np.linalg.svd(w, full_matrices=False)
    assert rms(u[:, 0] @ w) / rms(u[:, 0]) == pytest.approx(1, rel=1e-5)


def test_schedules_per_operator():
  halved = lipjax.PerOperator(optax.piecewise_constant_schedule(2.0, {1: 0.5}), power=0.0)
  params = {"kernel": PARAMS["dense"]}
  tx = lipjax.keep_params_on_sphere(halved, norm="frobenius")
  state, nothing = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  for norm in (2, 1):
    updates, state = tx.update(nothing, state, params)
    params = optax.apply_updates(params, updates)
    assert np.linalg.norm(params["kernel"]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
  ("make", "options", "norm"),
  [
    (lipjax.keep_params_in_spectral_ball, {}, lambda w: top_sigma(w)),
    (lipjax.keep_params_in_frobenius_ball, {}, np.linalg.norm),
    (
      lipjax.keep_params_in_operator_norm_ball,
      {"order": "infinity"},
      lambda w: abs(w).sum(0).max(),
    ),
  ],
)
def test_balls_take_the_same_radii(make, options, norm):
  params = {"kernel": PARAMS["dense"]}
  grow = {"kernel": PARAMS["dense"]}
  for radius, expected in (
    ("initial", norm(np.asarray(params["kernel"], np.float64))),
    (lipjax.PerOperator(0.5), 0.5 * (8 / 12) ** 0.5),
  ):
    tx = make(radius, **options)
    updates, _ = tx.update(grow, tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates)["kernel"], np.float64)
    assert norm(after) == pytest.approx(expected, rel=1e-2)


def test_decay_takes_a_strength_per_operator():
  params = {"a": {"kernel": PARAMS["torch"]}, "b": {"kernel": PARAMS["torch"][:2]}}
  nothing = jax.tree.map(jnp.zeros_like, params)
  tx = lipjax.add_spectral_decay(lipjax.PerOperator(0.1, power=1.0), n_steps=30)
  updates, _ = tx.update(nothing, tx.init(params), params)
  for name, strength in (("a", 0.1 * 9 / 4), ("b", 0.1 * 9 / 2)):
    sigma = top_sigma(np.asarray(params[name]["kernel"], np.float64))
    assert top_sigma(updates[name]["kernel"]) == pytest.approx(strength * sigma, rel=1e-2)


@pytest.mark.first(1)
@pytest.mark.parametrize("norm", ["spectral", "frobenius", "rows"])
def test_a_zero_has_no_initial_radius(norm):
  params = {"kernel": jnp.zeros((3, 2))}
  tx = lipjax.keep_params_on_sphere("initial", norm=norm)
  with pytest.raises(ValueError, match="'kernel' is zero, and radius='initial'"):
    tx.init(params)
  # Nobody can see it there: it is free.
  updates, _ = tx.update({"kernel": jnp.ones((3, 2))}, jax.jit(tx.init)(params), params)
  np.testing.assert_array_equal(updates["kernel"], 1)


@pytest.mark.thorough
def test_initial_radii_under_wrappers():
  """Masks, other trees' maps, vmap and scan, with radii in the state."""
  params = {"a": {"kernel": PARAMS["dense"]}, "b": {"kernel": jnp.zeros((3, 2))}}
  tx = lipjax.keep_params_on_sphere("initial", norm="frobenius", mask={"a": True, "b": False})
  tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), tx), 2)
  state = tx.init(params)
  same = optax.tree.map_params(tx, lambda x: x, state)
  assert jax.tree.structure(same) == jax.tree.structure(state)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (after, _), _ = jax.lax.scan(step, (params, state), length=4)
  norm = np.linalg.norm(params["a"]["kernel"])
  assert np.linalg.norm(after["a"]["kernel"]) == pytest.approx(norm, rel=1e-5)
  np.testing.assert_allclose(after["b"]["kernel"], -0.2, rtol=1e-5)

  plain = lipjax.keep_params_on_sphere("initial")
  many = {"kernel": normal(3, (4, 5, 6))}
  states = jax.vmap(plain.init)(many)
  updates, _ = jax.vmap(plain.update)(many, states, many)
  doubled = np.asarray(optax.apply_updates(many, updates)["kernel"], np.float64)
  before = np.linalg.norm(np.asarray(many["kernel"], np.float64), 2, axis=(1, 2))
  np.testing.assert_allclose(np.linalg.norm(doubled, 2, axis=(1, 2)), before, rtol=1e-2)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: lipjax.keep_params_on_sphere(0.0), "radius is 0"),
    (lambda: lipjax.keep_params_on_sphere(1.0, norm="row"), "'rows', 'columns'"),
    (lambda: lipjax.keep_params_on_sphere("first"), "or 'initial'"),
    (lambda: lipjax.project_sphere(PARAMS, "initial"), "expected a positive number, or a PerOp"),
    (lambda: lipjax.project_sphere(PARAMS, lambda count: 1.0), "expected a positive number"),
    (
      lambda: lipjax.project_frobenius_ball(PARAMS, lipjax.PerOperator(lambda count: 1.0)),
      "PerOperator of a number",
    ),
    (lambda: lipjax.keep_params_in_box(lipjax.PerOperator(1.0)), "limit is PerOperator"),
    (lambda: lipjax.keep_params_in_box("initial"), "or a schedule"),
    (lambda: lipjax.clip_weights(PARAMS, lambda count: 1.0), "expected a positive number"),
    (lambda: lipjax.PerOperator(-1.0), r"scale is -1\.0"),
    (lambda: lipjax.keep_params_on_sphere(1.0, k=0), "k is 0"),
    (
      lambda: lipjax.project_sphere(PARAMS, 1.0, norm="rows", layout=LAYOUT),
      "is no matrix: rows and columns",
    ),
  ],
)
def test_wrong_options_raise(make, message):
  with pytest.raises(ValueError, match=message):
    make()
