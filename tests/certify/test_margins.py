"""Certified radii: exact for linear classifiers, and 0 wherever nothing is proved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import FLOAT, normal

from lipjax.certify.margins import certified_accuracy, certified_radius

EPS = float(jnp.finfo(FLOAT).eps)


def linear(seed, n_classes=5, n_inputs=7):
  """Weights, biases, and Lipschitz constants of all logits and of each pair's difference."""
  w, b = normal(seed, (n_classes, n_inputs)), normal(seed + 1, (n_classes,))
  exact = np.asarray(w, np.float64)
  pairs = np.linalg.norm(exact[:, None] - exact[None], axis=-1)
  return w, b, np.linalg.norm(exact, 2) * (1 + 4 * EPS), pairs * (1 + 4 * EPS)


def distance_to_other_classes(w, b, x):
  """The distance from x to the nearest hyperplane f_i = f_j, and the point on it."""
  w, b, x = (np.asarray(a, np.float64) for a in (w, b, x))
  f = w @ x + b
  i = f.argmax()
  normals, margins = w[i] - np.delete(w, i, 0), f[i] - np.delete(f, i)
  lengths = np.linalg.norm(normals, axis=1)
  j = (margins / lengths).argmin()
  return margins[j] / lengths[j], x - margins[j] * normals[j] / lengths[j] ** 2


@pytest.mark.parametrize("seed", range(5))
def test_pairwise_radius_of_a_linear_classifier_is_exact(seed):
  w, b, upper, pairs = linear(seed)
  x = normal(seed + 9, (7,))
  truth, nearest = distance_to_other_classes(w, b, x)
  logits = np.asarray(w, np.float64) @ np.asarray(nearest) + np.asarray(b)
  top = np.sort(logits)[::-1]
  np.testing.assert_allclose(top[0], top[1], rtol=1e-9)  # the attack works
  radius = float(certified_radius(w @ x + b, pairs))
  np.testing.assert_allclose(radius, truth, rtol=1e-4)
  assert float(certified_radius(w @ x + b, upper)) <= radius


def test_radius_of_two_opposite_logits_is_exact():
  """f and -f: the constant of both is √2 that of f, and of the difference 2."""
  w = normal(0, (7,))
  x = normal(1, (7,))
  logits = jnp.stack([w @ x, -w @ x])
  truth = abs(float(w @ x)) / np.linalg.norm(np.asarray(w, np.float64))
  upper = np.sqrt(2) * np.linalg.norm(np.asarray(w, np.float64))
  radius = float(certified_radius(logits, upper))
  assert truth * (1 - 1e-5) <= radius <= truth


@given(st.integers(0, 1000), st.sampled_from([1e-15, 1.0, 1e15]))
def test_no_perturbation_within_the_radius_changes_the_class(seed, scale):
  w, b, upper, pairs = linear(seed)
  x = normal(seed + 5, (7,))
  logits = scale * (w @ x + b)
  f = np.asarray(logits, np.float64) / scale
  exact = np.asarray(w, np.float64)
  for bound in (upper, pairs):
    radius = float(certified_radius(logits, scale * bound))
    i = f.argmax()
    for j in set(range(5)) - {i}:
      direction = (exact[j] - exact[i]) / np.linalg.norm(exact[j] - exact[i])
      moved = f + exact @ (radius * direction)
      assert moved[i] >= moved[j] - 1e-12 * np.abs(moved).max()


def test_rounds_down():
  logits = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1000, 2)), jnp.float32)
  upper = jnp.float32(0.7)
  exact = np.abs(np.diff(np.asarray(logits, np.float64), axis=1))[:, 0] / (
    np.sqrt(2) * float(upper)
  )
  radius = np.asarray(certified_radius(logits, upper), np.float64)
  assert np.all(radius <= exact)
  assert np.all(radius >= exact * (1 - 2e-5))


@pytest.mark.parametrize(
  ("logits", "upper", "label", "truth"),
  [
    ([1.0, 1.0, 0.0], 1.0, None, 0),
    ([1.0, 1.0, 0.0], 0.0, None, 0),
    ([2.0, 1.0, 0.0], 1.0, 1, 0),
    ([2.0, 1.0, 0.0], 0.0, 1, 0),
    ([2.0, 1.0, 0.0], 1.0, 3, 0),
    ([2.0, 1.0, 0.0], 1.0, -1, 0),
    ([2.0, 1.0, 0.0], 0.0, None, np.inf),
    ([2.0, 1.0, 0.0], np.inf, None, 0),
    ([2.0, 1.0, 0.0], np.nan, None, 0),
    ([2.0, 1.0, 0.0], -1.0, None, 0),
    ([2.0, np.nan, 0.0], 1.0, None, 0),
    ([np.inf, 1.0, 0.0], 1.0, None, 0),
    ([2.0, 1.0, -np.inf], 1.0, None, 0),
    ([np.nan] * 3, 1.0, 0, 0),
    ([2.0, 1.0, 0.0], [[9.0, 0.0, 1.0], [0.0, 9.0, 0.0], [1.0, 0.0, 9.0]], None, 2),
    ([2.0, 1.0, 0.0], [[np.nan, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], None, 1),
    ([2.0, 1.0, 0.0], [[0.0, 1.0, np.inf], [1.0, 0.0, 1.0], [np.inf, 1.0, 0.0]], None, 0),
  ],
)
def test_edge_cases(logits, upper, label, truth):
  labels = None if label is None else jnp.asarray(label)
  radius = float(certified_radius(jnp.asarray(logits, FLOAT), jnp.asarray(upper), labels=labels))
  np.testing.assert_allclose(radius, truth, rtol=1e-5)


def test_batches():
  logits = normal(0, (2, 3, 4))
  labels = jnp.argmax(logits, -1)
  pairs = jnp.abs(normal(1, (4, 4))) + 1
  one = lambda f, u: float(certified_radius(f, u))
  for upper, of in (
    (2.0, lambda i, j: 2.0),
    (jnp.arange(1.0, 4), lambda i, j: j + 1.0),
    (jnp.asarray([[1.0], [2.0]]), lambda i, j: i + 1.0),
    (pairs, lambda i, j: pairs),
    (pairs * jnp.arange(1.0, 4)[:, None, None], lambda i, j: pairs * (j + 1)),
  ):
    expected = [[one(logits[i, j], of(i, j)) for j in range(3)] for i in range(2)]
    for given_labels in (None, labels):
      radius = jax.jit(certified_radius)(logits, upper, labels=given_labels)
      np.testing.assert_allclose(radius, expected, rtol=1e-6)
  assert certified_radius(jnp.zeros((0, 4)), 1.0).shape == (0,)


def test_low_precision_logits_are_taken_as_they_are():
  radius = certified_radius(jnp.asarray([2.0, 1.0], jnp.bfloat16), 1)
  assert radius.dtype == jnp.float32
  np.testing.assert_allclose(radius, 0.5**0.5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
@pytest.mark.parametrize("pairwise", [False, True])
def test_accuracy_counts_examples(batch_size, pairwise):
  w, b, upper, pairs = linear(0)
  x = np.asarray(normal(3, (10, 7)))
  labels = np.array(jnp.argmax(x @ w.T + b, -1))
  labels[:3] = (labels[:3] + 1) % 5
  bound = pairs if pairwise else upper
  radii = np.asarray([[0.0, 0.05], [0.2, 100.0]])
  value = certified_accuracy(lambda x: x @ w.T + b, bound, x, labels, radii, batch_size=batch_size)
  each = np.asarray(certified_radius(x @ w.T + b, bound, labels=labels))
  np.testing.assert_allclose(value, (each > radii[..., None]).mean(-1))
  assert value[0, 0] == 0.7
  assert value[1, 1] == 0


def test_accuracy_of_pytrees_with_a_bar_and_without_examples(capsys):
  inputs = {"a": np.ones((4, 2), np.float32), "b": np.ones((4, 1), np.float32)}
  predict = lambda x: jnp.concatenate([x["a"], 0 * x["b"]], -1) * jnp.asarray([3.0, 1.0, 1.0])
  value = certified_accuracy(predict, 1.0, inputs, np.zeros(4, int), 1.0, progress=True)
  assert value.shape == ()
  assert value == 1
  assert "Certifying" in capsys.readouterr().out
  empty = jax.tree.map(lambda x: x[:0], inputs)
  assert np.isnan(certified_accuracy(predict, 1.0, empty, np.zeros(0, int), 1.0))


LOGITS = jnp.zeros((2, 3))


def accuracy(predict=lambda x: x, upper=1.0, y=None, radii=0.0, **options):
  y = np.zeros(4, int) if y is None else y
  return certified_accuracy(predict, upper, np.ones((4, 3)), y, radii, **options)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: certified_radius(jnp.ones(1), 1.0), r"logits are float.*\[1\].*at least two"),
    (lambda: certified_radius(jnp.float32(1), 1.0), "last axis"),
    (lambda: certified_radius(jnp.arange(3), 1.0), "logits are int.*floating-point"),
    (lambda: certified_radius(LOGITS, jnp.ones(3)), r"upper has shape \(3,\).*\(2,\).*\(3, 3\)"),
    (lambda: certified_radius(LOGITS, jnp.ones((4, 4))), r"upper has shape \(4, 4\)"),
    (lambda: certified_radius(LOGITS, jnp.ones((5, 3, 3))), r"upper has shape \(5, 3, 3\)"),
    (lambda: certified_radius(LOGITS, 1j), "upper is complex"),
    (lambda: certified_radius(LOGITS, 1.0, labels=jnp.zeros(3, int)), r"labels.*\[3\].*\(2,\)"),
    (lambda: certified_radius(LOGITS, 1.0, labels=jnp.zeros(2)), "labels are float.*integers"),
    (lambda: accuracy(y=np.zeros((4, 1), int)), r"labels have shape \(4, 1\)"),
    (lambda: accuracy(y=np.zeros(3, int)), r"3 examples.*\(4, 3\)"),
    (lambda: accuracy(radii=[-1.0]), r"radii are \[-1.0\]"),
    (lambda: accuracy(radii=[np.nan]), "radii"),
    (lambda: accuracy(batch_size=0), "batch_size is 0"),
    (lambda: accuracy(predict=lambda x: x.sum()), r"predict returned shape \(\)"),
    (lambda: accuracy(upper=np.ones(4)), r"upper has shape \(4,\)"),
  ],
)
def test_errors_say_what_came_and_what_is_expected(call, message):
  with pytest.raises(ValueError, match=message):
    call()
