"""Warm-started vectors: a fixed point that follows the weights and always recovers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FLOAT, normal, operator_matrices, operator_sigma, top_sigma, with_spectrum

import lipjax
from lipjax import Convolution, Dense, Diagonal

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
norms = lipjax.read_spectral_norms
triplets = jax.jit(lipjax.singular_triplets)


def assert_norms(found, true, rtol):
  assert list(found) == list(true)
  for path, truth in true.items():
    np.testing.assert_allclose(found[path], truth, rtol=rtol, err_msg=path)


def assert_unit(params, vectors):
  """The vectors that consumers see."""
  for path, triplet in triplets(params, vectors).items():
    for x in (triplet.u, triplet.v):
      axes = tuple(range(triplet.sigma.ndim, x.ndim))
      lengths = np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axes))
      np.testing.assert_allclose(lengths, 1, rtol=1e-5, err_msg=path)


def test_a_step_from_cold_is_enough_for_small_leaves():
  # Eight rows span all that a matrix of so few columns has.
  assert_norms(norms(init(PARAMS)), dict.fromkeys(TRUE, 0.0) | {"ScanLayer_0/kernel": [0, 0]}, 0)
  vectors = update(PARAMS, init(PARAMS))
  assert_norms(norms(vectors), TRUE, 1e-5)
  assert_unit(PARAMS, vectors)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_every_k_converges_to_the_top_values(k):
  params = {"kernel": jnp.asarray(with_spectrum(3, 40, 30, 0.8 ** np.arange(30)), FLOAT)}
  vectors = lipjax.update_singular_vectors(params, init(params, k=k), n_steps=60)
  values = lipjax.read_singular_values(vectors)["kernel"]
  assert values.shape == (k,)
  np.testing.assert_allclose(values[0], 1, rtol=40 * EPS)
  np.testing.assert_allclose(values, 0.8 ** np.arange(k), rtol=1e-4)
  assert np.all(values <= 0.8 ** np.arange(k) * (1 + 40 * EPS))
  np.testing.assert_allclose(norms(vectors)["kernel"], values[0])


def test_more_values_than_a_weight_has():
  params = {
    "kernel": jnp.asarray(with_spectrum(4, 9, 7, [2.0, 1.0]), FLOAT),
    "s": {"scale": jnp.ones(3)},
  }
  vectors = lipjax.update_singular_vectors(params, init(params, k=5), n_steps=3)
  values = lipjax.read_singular_values(vectors)
  np.testing.assert_allclose(values["kernel"], [2, 1, 0, 0, 0], rtol=1e-5)
  np.testing.assert_allclose(values["s/scale"], [1, 1, 1, 0, 0])


LEAVES = {
  "stacked": (Dense((1,), (2,), (0,)), (3, 30, 25)),
  "attention": (Dense((0,), (1, 2)), (24, 4, 6)),
  "convolution": (Convolution((8, 8)), (3, 3, 3, 4)),
  "circular": (Convolution((6, 6), padding="CIRCULAR"), (3, 3, 4, 4)),
  "strided": (Convolution((9, 8), strides=2), (3, 3, 3, 5)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_every_operator_within_the_tolerance_from_cold(name):
  operator, shape = LEAVES[name]
  params, layout = {"w": normal(5, shape)}, {"w": operator}
  vectors = init(params, layout=layout, k=8)
  vectors = lipjax.update_singular_vectors(params, vectors, layout=layout)
  truth = operator_sigma(operator, params["w"])
  ratio = np.asarray(norms(vectors)["w"], np.float64) / truth
  assert np.all(ratio > 0.99)
  assert np.all(ratio < 1 + 100 * EPS)
  # And to what eight values are, with more steps.
  vectors = lipjax.update_singular_vectors(params, vectors, layout=layout, n_steps=60, tol=None)
  exact = np.linalg.svd(operator_matrices(operator, params["w"]), compute_uv=False)[..., :8]
  np.testing.assert_allclose(lipjax.read_singular_values(vectors)["w"], exact, rtol=2e-3)
  np.testing.assert_allclose(norms(vectors)["w"], exact[..., 0], rtol=1e-5)


def test_steps_are_taken_where_they_are_needed_and_counted():
  params = {"kernel": normal(6, (200, 150))}
  vectors = lipjax.update_singular_vectors(params, init(params))
  cold = int(vectors.steps)
  assert cold > 1
  # The same weights again need one step; others as many as at first.
  vectors = lipjax.update_singular_vectors(params, vectors)
  assert int(vectors.steps) == cold + 1
  other = lipjax.update_singular_vectors({"kernel": normal(7, (200, 150))}, vectors)
  assert int(other.steps) > cold + 2
  few = lipjax.update_singular_vectors({"kernel": normal(7, (200, 150))}, vectors, tol=None)
  assert int(few.steps) == cold + 2


@pytest.mark.parametrize("shape", [(256, 192), (512, 64), (20, 300)])
def test_the_tolerance_is_kept_from_cold(shape):
  for seed in range(5):
    params = {"kernel": normal(seed, shape)}
    for tol in (0.1, 0.01, 0.001):
      vectors = update(params, init(params, key=jax.random.key(seed)), tol=tol)
      ratio = float(norms(vectors)["kernel"]) / top_sigma(params["kernel"])
      assert 1 - tol < ratio < 1 + 40 * EPS


def test_the_state_is_a_fixed_point_of_shape_and_dtype():
  vectors = init(PARAMS)
  describe = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype), a.weak_type), tree)
  after = update(PARAMS, vectors)
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

  counted(PARAMS, counted(PARAMS, init(PARAMS)))
  assert len(traces) == 1


def test_n_steps_and_tol_may_be_traced():
  vectors = update(PARAMS, init(PARAMS), n_steps=3)
  again = update(PARAMS, vectors, n_steps=jnp.asarray(2), tol=jnp.asarray(0.5))
  assert int(again.steps) == int(vectors.steps) + 2


def test_a_leaf_starts_alike_whatever_other_leaves_there_are():
  first = lambda vectors, path: triplets({"dense": PARAMS["dense"]}, vectors)[path].v
  alone = init({"dense": PARAMS["dense"]})
  np.testing.assert_array_equal(alone.v, init({"dense": PARAMS["dense"]}).v)
  both = init({"dense": PARAMS["dense"], "zzz": PARAMS["twin"]})
  np.testing.assert_array_equal(both.v[: 8 * 6], alone.v[: 8 * 6])
  assert not np.array_equal(both.v[8 * 6 : 16 * 6], alone.v[: 8 * 6])
  other = init({"dense": PARAMS["dense"]}, key=jax.random.key(1))
  assert not np.allclose(first(alone, "dense/kernel"), first(other, "dense/kernel"))


def test_starts():
  params = {"kernel": normal(8, (300, 200)), "zero": {"kernel": jnp.zeros((5, 4))}}
  vectors = init(params, start="converged")
  np.testing.assert_allclose(norms(vectors)["kernel"], top_sigma(params["kernel"]), rtol=2e-6)
  assert norms(vectors)["zero/kernel"] == 0
  with pytest.raises(ValueError, match="'random' or 'converged'"):
    init(params, start="ones")
  with pytest.raises(ValueError, match="shapes alone"):
    init(jax.eval_shape(lambda: params), start="converged")


@pytest.mark.parametrize("k", [0, -1, 1.5, "8", jnp.asarray(2)])
def test_k_is_a_positive_integer(k):
  with pytest.raises(ValueError, match="k is"):
    init(PARAMS, k=k)


def test_one_warm_step_follows_slowly_moving_weights():
  w = np.random.default_rng(3).standard_normal((60, 40))
  drift = np.random.default_rng(4).standard_normal((60, 40)) * 1e-3
  vectors = update(
    {"kernel": jnp.asarray(w, FLOAT)}, init({"kernel": jnp.asarray(w, FLOAT)}), n_steps=9
  )
  for _ in range(20):
    w = w + drift
    vectors = update({"kernel": jnp.asarray(w, FLOAT)}, vectors, tol=None)
    ratio = float(norms(vectors)["kernel"]) / top_sigma(w)
    assert 1 - 1e-4 < ratio < 1 + 20 * EPS


@pytest.mark.parametrize("shrink", [0.5, 1e-3, 1e-12, 1e3])
def test_averaged_or_shrunk_vectors_do_not_bias_sigma(shrink):
  # PEERS, miles-credit#394: averaged vectors read sigma 6 % low.
  params = {"kernel": PARAMS["dense"]["kernel"], "scale": PARAMS["norm"]["scale"]}
  vectors = update(params, init(params), n_steps=20)
  shrunk = vectors._replace(u=vectors.u * shrink, v=vectors.v * shrink)
  np.testing.assert_allclose(norms(update(params, shrunk))["kernel"], 3.0, rtol=1e-6)
  assert_unit(params, update(params, shrunk))
  np.testing.assert_allclose(triplets(params, shrunk)["kernel"].sigma, 3.0, rtol=1e-6)


def test_averaging_the_vectors_of_two_weights():
  a, b = PARAMS["dense"]["kernel"], PARAMS["twin"]["kernel"]
  states = [update({"kernel": w}, init({"kernel": w}), n_steps=20) for w in (a, b)]
  mean = states[0]._replace(v=(states[0].v + states[1].v) / 2)
  params = {"kernel": (a + b) / 2}
  np.testing.assert_allclose(norms(update(params, mean, n_steps=9))["kernel"],
                             top_sigma((a + b) / 2), rtol=1e-5)  # fmt: skip


def test_zero_then_nonzero_weights():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  vectors = update(zero, init(zero), n_steps=3)
  for path, triplet in triplets(zero, vectors).items():
    assert not any(np.any(x) for x in triplet), path
  assert not any(np.any(x) for x in lipjax.read_singular_values(vectors).values())
  assert_norms(norms(update(PARAMS, vectors, n_steps=3)), TRUE, 1e-5)


def test_a_weight_that_gains_rank_is_seen():
  # Eight rows lie on one direction until then; the others start anew.
  one = jnp.outer(normal(1, 30), normal(2, 40))
  vectors = init({"kernel": one})
  for _ in range(5):
    vectors = update({"kernel": one}, vectors)
  more = one + 3 * normal(3, one.shape)
  ratio = float(norms(update({"kernel": more}, vectors))["kernel"]) / top_sigma(more)
  assert 0.99 < ratio < 1 + 40 * EPS


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_leaf_is_nan_alone_and_recovers(bad):
  vectors = update(PARAMS, init(PARAMS), n_steps=20)
  for where in ("dense", "ScanLayer_0", "half"):
    poisoned = dict(PARAMS)
    kernel = PARAMS[where]["kernel"]
    poisoned[where] = PARAMS[where] | {"kernel": kernel.at[(0,) * kernel.ndim].set(bad)}
    after = update(poisoned, vectors)
    expected = {}
    for path, truth in TRUE.items():
      expected[path] = np.array(truth, np.float64)
      if path.startswith(where):
        expected[path][(0,) * expected[path].ndim] = np.nan  # of a stack, only the slice
    assert_norms(norms(after), expected, 1e-5)
    assert not any(np.isnan(x).any() for x in (after.u, after.v))
    # The finite ones do not wait for the one that never converges.
    assert int(after.steps) < int(vectors.steps) + 5
    assert_norms(norms(update(PARAMS, after, n_steps=3)), TRUE, 1e-5)


def test_jumps_of_scale_between_updates():
  w = PARAMS["dense"]["kernel"]
  vectors = update({"kernel": w}, init({"kernel": w}), n_steps=20)
  for scale in (1e-30, 1.0, 1e30, 1.0, 1e15, 1e30, 1.0, 1e-30, 1e30, 1e-34, 1e35):
    vectors = update({"kernel": w * scale}, vectors, tol=None)
    np.testing.assert_allclose(float(norms(vectors)["kernel"]) / scale, 3.0, rtol=1e-5)


def test_scales_from_a_cold_start():
  w = PARAMS["dense"]["kernel"]
  for scale in (1e-34, 1e-30, 1e30, 1e35):
    vectors = update({"kernel": w * scale}, init({"kernel": w}))
    np.testing.assert_allclose(norms(vectors)["kernel"] / scale, 3.0, rtol=1e-5)


def test_subnormal_weights_give_no_nan():
  params = {"kernel": jnp.full((6, 4), 1e-40, jnp.float32)}
  vectors = update(params, init(params), n_steps=3)
  assert not any(np.isnan(x).any() for x in jax.tree.leaves((triplets(params, vectors), vectors)))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1), (0, 4), (4, 0), (17, 16)])
def test_thin_and_empty_leaves(shape):
  params = {"kernel": normal(5, shape)}
  vectors = update(params, init(params), n_steps=20)
  np.testing.assert_allclose(norms(vectors)["kernel"], top_sigma(params["kernel"]), rtol=1e-6)


def test_orthogonal_weights_take_one_step():
  # All singular values are equal: every vector is a top one, and no gap to wait for.
  q = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
  params = {"kernel": jnp.asarray(q, FLOAT)}
  vectors = update(params, init(params))
  np.testing.assert_allclose(norms(vectors)["kernel"], 1, rtol=1e-5)
  assert int(vectors.steps) <= 2


def test_vectors_of_other_params_raise():
  vectors = init({"kernel": jnp.ones((6, 4))})
  for consumer in (
    lipjax.update_singular_vectors,
    lipjax.singular_triplets,
    lipjax.spectral_normalize,
    lipjax.spectral_penalty,
  ):
    with pytest.raises(ValueError, match=r"'kernel': '6x4'.*'a/kernel': '6x4'"):
      consumer({"a": {"kernel": jnp.ones((6, 4))}}, vectors)
    with pytest.raises(ValueError, match=r"6x4.*5x3"):
      consumer({"kernel": jnp.ones((5, 3))}, vectors)
    # What users have passed by mistake: a strength, and vectors of an older version.
    with pytest.raises(ValueError, match=r"float 1\.0 where singular vectors belong"):
      consumer({"kernel": jnp.ones((6, 4))}, 1.0)
    old = {"kernel": lipjax.SingularTriplet(jnp.ones(()), jnp.ones(4), jnp.ones(6))}
    with pytest.raises(ValueError, match=r"dictionary.*lipjax\.SingularVectors.*anew"):
      consumer({"kernel": jnp.ones((6, 4))}, old)
    short = vectors._replace(u=vectors.u[:3])
    with pytest.raises(ValueError, match=r"lengths.*anew"):
      consumer({"kernel": jnp.ones((6, 4))}, short)
  with pytest.raises(ValueError, match="n_steps is 0"):
    lipjax.update_singular_vectors({"kernel": jnp.ones((6, 4))}, vectors, n_steps=0)
  with pytest.raises(ValueError, match="tol is 0"):
    lipjax.update_singular_vectors({"kernel": jnp.ones((6, 4))}, vectors, tol=0.0)


def test_vectors_may_be_numpy_arrays_from_a_checkpoint():
  params = {"kernel": PARAMS["dense"]["kernel"]}
  vectors = update(params, init(params), n_steps=20)
  restored = jax.tree.map(lambda x: np.asarray(x), vectors)
  np.testing.assert_allclose(norms(update(params, restored))["kernel"], 3.0, rtol=1e-6)


def test_the_same_for_layouts_given_as_dictionaries():
  params = {"w": normal(6, (3, 4, 2)), "s": normal(7, (3, 4))}
  layout = {"w": Dense((1,), (2,), (0,)), "s": Diagonal((0,))}
  vectors = init(params, layout=layout)
  vectors = lipjax.update_singular_vectors(params, vectors, n_steps=5, layout=layout)
  for path, operator in layout.items():
    np.testing.assert_allclose(
      norms(vectors)[path], operator_sigma(operator, params[path]), rtol=1e-5
    )
  found = lipjax.read_singular_values(vectors)["s"]
  np.testing.assert_array_equal(found[:, :4], -np.sort(-np.abs(params["s"]), axis=1))
  assert lipjax.read_singular_values(init(params, layout=layout, k=6))["s"].shape == (3, 6)


def test_the_triplet_is_one_of_the_weight():
  params = {"kernel": normal(9, (30, 20))}
  vectors = lipjax.update_singular_vectors(params, init(params), n_steps=60)
  sigma, u, v = lipjax.singular_triplets(params, vectors)["kernel"]
  np.testing.assert_allclose(v @ params["kernel"], sigma * u, atol=1e-4)
  np.testing.assert_allclose(params["kernel"] @ u, sigma * v, atol=1e-4)
  np.testing.assert_allclose(sigma, top_sigma(params["kernel"]), rtol=20 * EPS)


def test_scalars_for_logs():
  params = {
    "dense": {"kernel": jnp.diag(jnp.array([3.0, 2.0]))},
    "ScanBlock_0": {"kernel": jnp.eye(2) * jnp.arange(1.0, 4.0)[:, None, None]},
  }
  vectors = lipjax.init_singular_vectors(params, start="converged")
  found = jax.jit(lipjax.read_scalars)(vectors)
  assert all(value.shape == () for value in found.values())
  expected = {f"ScanBlock_0/kernel/{i}": i + 1.0 for i in range(3)}
  expected |= {"dense/kernel": 3.0, "largest": 3.0, "sum_of_squares": 23.0}
  expected = {f"spectral_norm/{key}": value for key, value in expected.items()}
  assert {key: pytest.approx(float(x), rel=1e-5) for key, x in found.items()} == expected
  with pytest.raises(ValueError, match="tracks no norms"):
    lipjax.read_scalars({})
