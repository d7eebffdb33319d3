"""Warm-started vectors: a fixed point that follows the weights and always recovers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal, operator_sigma, top_sigma, with_spectrum

import lipjax
from lipjax import Dense, Diagonal, SingularTriplet

EPS = float(jnp.finfo(FLOAT).eps)
SPECTRUM = [3.0, 1.0, 0.5, 0.1]
PARAMS = {
  "dense": {"kernel": jnp.asarray(with_spectrum(0, 6, 4, SPECTRUM), FLOAT), "bias": jnp.ones(4)},
  "twin": {"kernel": jnp.asarray(with_spectrum(1, 6, 4, SPECTRUM) * 2, FLOAT)},
  "half": {"kernel": jnp.asarray(with_spectrum(2, 5, 4, SPECTRUM), jnp.bfloat16)},
  "norm": {"scale": jnp.asarray([0.5, -2.0, 1.0])},
  "ScanLayer_0": {
    "kernel": jnp.stack([jnp.asarray(with_spectrum(i, 4, 4, SPECTRUM) * i, FLOAT) for i in (1, 2)])
  },
}
TRUE = {
  "ScanLayer_0/kernel": [3.0, 6.0],
  "dense/kernel": 3.0,
  "half/kernel": top_sigma(PARAMS["half"]["kernel"]),
  "norm/scale": 2.0,
  "twin/kernel": 6.0,
}
init = lipjax.init_singular_vectors
update = jax.jit(lipjax.update_singular_vectors)


def assert_unit(vectors, operator_batch=0):
  for path, triplet in vectors.items():
    for x in (triplet.u, triplet.v):
      axes = tuple(range(triplet.sigma.ndim, x.ndim))
      lengths = np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axes))
      np.testing.assert_allclose(lengths, 1, rtol=1e-5, err_msg=path)


def test_twenty_steps_from_cold_and_their_norms():
  vectors = init(PARAMS)
  assert list(vectors) == list(TRUE)
  assert_unit(vectors)
  triplets, vectors = update(PARAMS, vectors, n_steps=20)
  for path, truth in TRUE.items():
    np.testing.assert_allclose(triplets[path].sigma, truth, rtol=1e-6, err_msg=path)
  assert_unit(vectors)
  assert_unit(triplets)


def test_the_state_is_a_fixed_point_of_shape_and_dtype():
  vectors = init(PARAMS)
  describe = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype), a.weak_type), tree)
  _, after = update(PARAMS, vectors)
  assert describe(after) == describe(vectors)
  assert jax.tree.structure(after) == jax.tree.structure(vectors)
  shapes = jax.eval_shape(init, PARAMS)
  assert jax.tree.map(lambda a: a.shape, shapes) == jax.tree.map(lambda a: a.shape, vectors)


def test_no_retracing_on_the_next_call():
  traces = []

  @jax.jit
  def counted(params, vectors):
    traces.append(1)
    return lipjax.update_singular_vectors(params, vectors)

  _, vectors = counted(PARAMS, init(PARAMS))
  counted(PARAMS, vectors)
  assert len(traces) == 1


def test_n_steps_may_be_traced_and_zero_steps_change_nothing():
  _, vectors = update(PARAMS, init(PARAMS), n_steps=3)
  triplets, same = update(PARAMS, vectors, n_steps=jnp.asarray(0))
  jax.tree.map(np.testing.assert_array_equal, same, vectors)
  for path in TRUE:
    np.testing.assert_array_equal(triplets[path].sigma, vectors[path].sigma)


def test_steps_compose():
  twice = update(PARAMS, update(PARAMS, init(PARAMS), n_steps=1)[1], n_steps=1)[1]
  once = update(PARAMS, init(PARAMS), n_steps=2)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), twice, once)


def test_a_leaf_starts_alike_whatever_other_leaves_there_are():
  alone = init({"dense": PARAMS["dense"]})["dense/kernel"]
  jax.tree.map(np.testing.assert_array_equal, alone, init(PARAMS)["dense/kernel"])
  assert not np.array_equal(alone.u, init(PARAMS)["twin/kernel"].u)
  other = init(PARAMS, key=jax.random.key(1))["dense/kernel"]
  assert not np.array_equal(alone.u, other.u)


def test_starts():
  params = {"kernel": PARAMS["dense"]["kernel"]}
  ones = init(params, start="ones")["kernel"]
  np.testing.assert_allclose(ones.u, np.full(4, 0.5), rtol=1e-6)
  given = init(params, start={"kernel": jnp.asarray([0.0, 5.0, 0.0, 0.0])})["kernel"]
  np.testing.assert_array_equal(given.u, [0, 1, 0, 0])
  with pytest.raises(ValueError, match=r"'kernel'.*\(4,\)"):
    init(params, start={"kernel": jnp.ones(6)})
  with pytest.raises(ValueError, match=r"\['other'\].*\['kernel'\]"):
    init(params, start={"other": jnp.ones(4)})


def test_one_warm_step_follows_slowly_moving_weights():
  # Cold one reads 0.90-0.95 of the norm after five steps; warm ones stay on it.
  w = np.random.default_rng(3).standard_normal((6, 4))
  drift = np.random.default_rng(4).standard_normal((6, 4)) * 1e-3
  _, vectors = update(
    {"kernel": jnp.asarray(w, FLOAT)}, init({"kernel": jnp.asarray(w, FLOAT)}), n_steps=50
  )
  for _ in range(20):
    w = w + drift
    triplets, vectors = update({"kernel": jnp.asarray(w, FLOAT)}, vectors)
    ratio = float(triplets["kernel"].sigma) / top_sigma(w)
    assert 1 - 1e-4 < ratio < 1 + 20 * EPS


@pytest.mark.parametrize("shrink", [0.5, 1e-3, 1e-12, 1e3])
def test_averaged_or_shrunk_vectors_do_not_bias_sigma(shrink):
  # PEERS, miles-credit#394: averaged vectors read sigma 6 % low.
  params = {"kernel": PARAMS["dense"]["kernel"], "scale": PARAMS["norm"]["scale"]}
  _, vectors = update(params, init(params), n_steps=20)
  shrunk = {p: t._replace(u=t.u * shrink, v=t.v * shrink) for p, t in vectors.items()}
  triplets, after = update(params, shrunk)
  np.testing.assert_allclose(triplets["kernel"].sigma, 3.0, rtol=1e-6)
  assert_unit(after)
  triplets, _ = update(params, shrunk, n_steps=0)
  np.testing.assert_allclose(triplets["kernel"].sigma, 3.0, rtol=1e-6)


def test_averaging_the_vectors_of_two_weights():
  a, b = PARAMS["dense"]["kernel"], PARAMS["twin"]["kernel"]
  states = [update({"kernel": w}, init({"kernel": w}), n_steps=20)[1] for w in (a, b)]
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *states)
  triplets, _ = update({"kernel": (a + b) / 2}, mean, n_steps=40)
  np.testing.assert_allclose(triplets["kernel"].sigma, top_sigma((a + b) / 2), rtol=1e-5)


def test_zero_then_nonzero_weights():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  triplets, vectors = update(zero, init(zero), n_steps=3)
  for path, triplet in triplets.items():
    assert not any(np.any(x) for x in triplet), path
  assert_unit(vectors)
  triplets, _ = update(PARAMS, vectors, n_steps=20)
  for path, truth in TRUE.items():
    np.testing.assert_allclose(triplets[path].sigma, truth, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_leaf_is_nan_alone_and_recovers(bad):
  _, vectors = update(PARAMS, init(PARAMS), n_steps=20)
  for where in ("dense", "ScanLayer_0", "half"):
    poisoned = dict(PARAMS)
    kernel = PARAMS[where]["kernel"]
    poisoned[where] = PARAMS[where] | {"kernel": kernel.at[(0,) * kernel.ndim].set(bad)}
    triplets, after = update(poisoned, vectors)
    for path, truth in TRUE.items():
      expected = np.array(truth, np.float64)
      if path.startswith(where):
        expected[(0,) * expected.ndim] = np.nan  # of a stack, only the slice
      np.testing.assert_allclose(triplets[path].sigma, expected, rtol=1e-5, err_msg=path)
    assert not any(np.isnan(x).any() for t in after.values() for x in (t.u, t.v))
    assert_unit(after)
    triplets, _ = update(PARAMS, after, n_steps=20)
    for path, truth in TRUE.items():
      np.testing.assert_allclose(triplets[path].sigma, truth, rtol=1e-5, err_msg=path)


def test_jumps_of_scale_between_updates():
  w = PARAMS["dense"]["kernel"]
  _, vectors = update({"kernel": w}, init({"kernel": w}), n_steps=20)
  for scale in (1e-30, 1.0, 1e30, 1.0, 1e15, 1e30, 1.0, 1e-30):
    triplets, vectors = update({"kernel": w * scale}, vectors)
    sigma = float(triplets["kernel"].sigma)
    # One step after a jump the estimate is still one from below, and of its order.
    assert 0.99 < sigma / (3 * scale) < 1 + 1e-5, scale
    assert_unit(vectors)


def test_a_jump_beyond_the_range_of_float32_is_nan_once_and_without_a_gradient():
  w = PARAMS["dense"]["kernel"]
  _, vectors = update({"kernel": w * 1e-30}, init({"kernel": w}), n_steps=20)
  triplets, vectors = update({"kernel": w * 1e30}, vectors)  # 1e60-fold in one step
  assert np.isnan(triplets["kernel"].sigma) or triplets["kernel"].sigma.dtype == jnp.float64
  assert not any(np.isnan(x).any() for x in (triplets["kernel"].u, triplets["kernel"].v))
  assert_unit(vectors)
  triplets, _ = update({"kernel": w * 1e30}, vectors, n_steps=20)
  np.testing.assert_allclose(triplets["kernel"].sigma, 3e30, rtol=1e-5)


def test_jumps_of_scale_from_a_cold_start():
  w = PARAMS["dense"]["kernel"]
  # Within 1e35 of 1 either way; beyond, the product of two scales leaves float32.
  for scale in (1e-34, 1e-30, 1e30, 1e35):
    triplets, _ = update({"kernel": w * scale}, init({"kernel": w}), n_steps=20)
    np.testing.assert_allclose(triplets["kernel"].sigma / scale, 3.0, rtol=1e-5)


def test_subnormal_weights_give_no_nan():
  params = {"kernel": jnp.full((6, 4), 1e-40, jnp.float32)}
  triplets, vectors = update(params, init(params), n_steps=3)
  assert not any(np.isnan(x).any() for x in jax.tree.leaves((triplets, vectors)))
  assert_unit(vectors)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1), (0, 4)])
def test_thin_and_empty_leaves(shape):
  params = {"kernel": normal(5, shape)}
  triplets, _ = update(params, init(params), n_steps=2)
  np.testing.assert_allclose(triplets["kernel"].sigma, top_sigma(params["kernel"]), rtol=1e-6)


def test_vectors_of_other_params_raise():
  vectors = init({"kernel": jnp.ones((6, 4))})
  with pytest.raises(ValueError, match=r"\['kernel'\].*\['a/kernel'\]"):
    lipjax.update_singular_vectors({"a": {"kernel": jnp.ones((6, 4))}}, vectors)
  with pytest.raises(ValueError, match="kernel"):
    lipjax.update_singular_vectors({"kernel": jnp.ones((5, 3))}, vectors)
  with pytest.raises(ValueError, match="n_steps is 0"):
    lipjax.update_singular_vectors({"kernel": jnp.ones((6, 4))}, vectors, n_steps=0)


def test_vectors_may_be_plain_tuples_from_a_checkpoint():
  params = {"kernel": PARAMS["dense"]["kernel"]}
  _, vectors = update(params, init(params), n_steps=20)
  restored = {
    p: SingularTriplet(*(np.asarray(x, np.float32) for x in t)) for p, t in vectors.items()
  }
  triplets, _ = update(params, restored)
  np.testing.assert_allclose(triplets["kernel"].sigma, 3.0, rtol=1e-6)


def test_the_same_for_layouts_given_as_dictionaries():
  params = {"w": normal(6, (3, 4, 2)), "s": normal(7, (3, 4))}
  layout = {"w": Dense((1,), (2,), (0,)), "s": Diagonal((0,))}
  vectors = init(params, layout=layout)
  triplets, _ = lipjax.update_singular_vectors(params, vectors, n_steps=200, layout=layout)
  for path, operator in layout.items():
    np.testing.assert_allclose(
      triplets[path].sigma, operator_sigma(operator, params[path]), rtol=1e-5
    )
