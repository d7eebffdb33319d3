"""The transformations under contract: a new one joins by one line in `CASES`."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lipjax


@dataclasses.dataclass(frozen=True)
class Case:
  """One transformation and how the contract reads for it.

  Attributes:
    name: test id.
    factory: the public function.
    proximal: leaf ↦ the point where gradient steps on ½‖w − leaf‖² end up with the
      transformation in front of them; called on matrices only when `matrices_only`. None for
      those that lead nowhere by themselves.
    kwargs: its arguments.
    matrices_only: whether it leaves vectors (biases) alone.
    last: whether it goes last in a chain, as a constraint does.
    hyperparameter: the argument that may be a schedule, or None.
    off: the hyperparameter's value with which it does nothing.
    gathers: whether it needs a whole weight on one device.
    variant: whether another case is the same code but for its arithmetic; the default run
      then has its tests of values alone.
    flatten: `optax.flatten` around it ``"raises"``, or gives the ``"same"`` numbers.
  """

  name: str
  factory: Callable[..., optax.GradientTransformationExtraArgs]
  proximal: Callable[[np.ndarray], np.ndarray] | None
  kwargs: Mapping[str, Any]
  matrices_only: bool = True
  last: bool = False
  hyperparameter: str | None = "strength"
  off: float = 0.0
  gathers: bool = False
  variant: bool = False
  flatten: Literal["raises", "same"] = "raises"

  def build(self, **overrides) -> optax.GradientTransformationExtraArgs:
    """The transformation, with some arguments replaced."""
    return self.factory(**{**self.kwargs, **overrides})

  def chain(self, *others: optax.GradientTransformation):
    """It and `others` in the order in which a user chains them."""
    return optax.chain(*self.ordered(self.build(), *others))

  def ordered(self, ours, *others):
    """`ours` at its place among `others`."""
    return (*others, ours) if self.last else (ours, *others)

  def build_with(self, value) -> optax.GradientTransformationExtraArgs:
    """The transformation with this value of its hyperparameter."""
    if self.hyperparameter is None:
      pytest.skip("has no number to set")
    return self.build(**{self.hyperparameter: value})

  @property
  def value(self) -> float:
    """Its hyperparameter in `kwargs`."""
    if self.hyperparameter is None:
      pytest.skip("has no number to set")
    return self.kwargs[self.hyperparameter]

  def takes(self, argument: str) -> bool:
    """Whether the factory has this argument."""
    return argument in inspect.signature(self.factory).parameters

  def solution(self, targets):
    """The params at which least squares towards `targets` converges."""
    if self.proximal is None:
      pytest.skip("converges to nothing by itself")
    return jax.tree.map(
      lambda t: t if self.matrices_only and t.ndim < 2 else self.proximal(np.asarray(t)), targets
    )


def _first_singular_value(shrink):
  """The proximal map that changes σ₁ alone; right while σ₁ stays the largest."""

  def proximal(w):
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    assert shrink(s[0]) > s[1]
    return w + (shrink(s[0]) - s[0]) * np.outer(u[:, 0], vt[0])

  return proximal


def _soft_threshold(w):
  return np.sign(w) * np.maximum(np.abs(w) - 0.1, 0)


def _clip(w):
  u, s, vt = np.linalg.svd(w, full_matrices=False)
  assert s[0] > RADIUS > s[1]
  return u @ np.diag(np.minimum(s, RADIUS)) @ vt


def _shrink_above(w):
  u, s, vt = np.linalg.svd(w, full_matrices=False)
  assert s[1] > 0.5
  return u @ np.diag(np.where(s > 0.5, (s + 0.1 * 0.5) / 1.1, s)) @ vt


def _polar(w):
  u, _, vt = np.linalg.svd(w, full_matrices=False)
  return u @ vt


def _scaled_by(norm):
  """Where projected gradient ends up when the projection scales."""

  def proximal(w):
    assert norm(w) > RADIUS
    return w * RADIUS / norm(w)

  return proximal


def _one_norm(kernel):
  return np.abs(kernel).sum(1).max()  # (inputs, outputs): the sum over outputs


def _infinity_norm(kernel):
  return np.abs(kernel).sum(0).max()


RADIUS = 2.0
_scaled = _scaled_by(lambda w: np.linalg.norm(w, 2))
_frobenius = _scaled_by(np.linalg.norm)
_one = _scaled_by(_one_norm)
_infinity = _scaled_by(_infinity_norm)
_rows = lambda w: w * RADIUS / np.linalg.norm(w, axis=0)  # (inputs, outputs)
_box = lambda w: np.clip(w, -0.5, 0.5)
_squared = _first_singular_value(lambda s: s / 1.1)
_hinge = _first_singular_value(lambda s: (s + 0.1 * 0.5) / 1.1)
#: The root of s + 0.4 s (s² − 1) = the target's.
_power = _first_singular_value(lambda s: np.roots([0.4, 0, 0.6, -s])[-1].real)


def _ball(name, factory, proximal, *, gathers=False, variant=False, **kwargs):
  """A constraint to a ball of `RADIUS`."""
  return Case(name, factory, proximal, {"radius": RADIUS, **kwargs}, last=True,
              hyperparameter="radius", off=math.inf, gathers=gathers, variant=variant)  # fmt: skip


# fmt: off
CASES = (
    Case("spectral", lipjax.add_spectral_decay, _squared, {"strength": 0.1}),
    Case("spectral_hinge", lipjax.add_spectral_decay, _hinge,
         {"strength": 0.1, "penalty": "hinge", "target": 0.5}, variant=True),
    Case("spectral_power", lipjax.add_spectral_decay, _power,
         # Strong enough that a norm of some updates ago overshoots, within the tolerance.
         {"strength": 0.1, "penalty": "power", "every": 1}, variant=True),
    Case("spectral_every3", lipjax.add_spectral_decay, _squared,
         {"strength": 0.1, "every": 3, "n_steps": 2}, variant=True),
    Case("clip_decay", lipjax.add_clip_decay, _shrink_above, {"strength": 0.1, "limit": 0.5},
         gathers=True, variant=True),
    Case("clip_decay_top_k", lipjax.add_clip_decay, _shrink_above,
         {"strength": 0.1, "limit": 0.5, "method": "clip_top_k"}, variant=True),
    Case("l1", lipjax.add_l1_decay, _soft_threshold, {"strength": 0.1},
         matrices_only=False, flatten="same"),
    _ball("ball_scale", lipjax.keep_params_in_spectral_ball, _scaled),
    _ball("ball_clip_top", lipjax.keep_params_in_spectral_ball, _clip, variant=True,
          method="clip_top"),
    _ball("ball_clip_svd", lipjax.keep_params_in_spectral_ball, _clip, gathers=True,
          variant=True, method="clip_svd"),
    _ball("ball_clip_sign", lipjax.keep_params_in_spectral_ball, _clip, gathers=True,
          variant=True, method="clip_sign"),
    _ball("frobenius_ball", lipjax.keep_params_in_frobenius_ball, _frobenius,
          variant=True),
    _ball("one_norm_ball", lipjax.keep_params_in_operator_norm_ball, _one, variant=True,
          order="one"),
    _ball("infinity_norm_ball", lipjax.keep_params_in_operator_norm_ball, _infinity,
          variant=True, order="infinity"),
    _ball("sphere", lipjax.keep_params_on_sphere, _scaled, variant=True),
    _ball("sphere_frobenius", lipjax.keep_params_on_sphere, _frobenius, variant=True,
          norm="frobenius"),
    _ball("sphere_rows", lipjax.keep_params_on_sphere, _rows, variant=True, norm="rows"),
    Case("box", lipjax.keep_params_in_box, _box, {"limit": 0.5}, matrices_only=False, last=True,
         hyperparameter="limit", off=math.inf, flatten="same"),
    Case("tangent", lipjax.keep_updates_tangent, None, {"manifold": "frobenius"},
         hyperparameter=None),
    Case("tangent_orthogonal", lipjax.keep_updates_tangent, None, {}, hyperparameter=None,
         gathers=True, variant=True),
    Case("orthogonal", lipjax.keep_params_orthogonal, _polar, {}, last=True,
         hyperparameter=None, gathers=True, variant=True),
)
# fmt: on


def params(dtype=None):
  """A small net's tree: matrices of two shapes, biases, a scale."""
  shapes = {
    "Dense_0": {"kernel": (4, 3), "bias": (3,)},
    "Dense_1": {"kernel": (3, 2), "bias": (2,)},
    "Dense_2": {"kernel": (4, 3), "bias": (3,)},
    "LayerNorm_0": {"scale": (3,), "bias": (3,)},
  }
  return normal(0, shapes, dtype)


def updates(dtype=None, seed=1):
  """Updates for `params`."""
  return updates_like(params(dtype), seed)


def updates_like(tree, seed=1):
  """Normal updates of the shapes and dtypes of `tree`."""
  return jax.tree.map(lambda p, r: r.astype(p.dtype), tree, normal(seed, tree))


def targets():
  """Least squares targets for `params` in whose solution nothing changes sign or order."""
  matrix = np.array([[3, 0.5, -0.4], [0.6, -1, 0.5], [0.3, 0.4, 0.6], [-0.2, 0.3, 0.9]])
  tree = {
    "Dense_0": {"kernel": matrix, "bias": np.array([0.5, -1, 2])},
    "Dense_1": {"kernel": matrix[:3, :2], "bias": np.array([0.7, -0.9])},
  }
  return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def normal(seed, tree, dtype=None):
  """A standard normal tree of the shapes (or of the leaves' shapes) in `tree`."""
  is_shape = lambda node: isinstance(node, tuple)
  leaves, treedef = jax.tree.flatten(tree, is_leaf=is_shape)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  shapes = [leaf if is_shape(leaf) else leaf.shape for leaf in leaves]
  arrays = [
    jax.random.normal(key, shape, jnp.float32) for key, shape in zip(keys, shapes, strict=True)
  ]
  return treedef.unflatten([jnp.asarray(a, dtype or float) for a in arrays])


def run(tx, params, n_steps=3, grads=None, state=None):
  """`n_steps` updates with fixed gradients: the last updates, params and state."""
  state = tx.init(params) if state is None else state
  grads = updates_like(params) if grads is None else grads

  @jax.jit
  def one(params, state):
    u, state = tx.update(grads, state, params)
    return u, optax.apply_updates(params, u), state

  for _ in range(n_steps):
    u, params, state = one(params, state)
  return u, params, state


def step(tx, grads, state, params, **extra):
  """``tx.update``, jitted: unjitted, a loop inside is compiled at each call as well."""
  return jax.jit(lambda *args: tx.update(*args, **extra))(grads, state, params)


def assert_same_bits(actual, expected):
  """Equal structure, dtypes and bits."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, e = np.asarray(a), np.asarray(e)
    assert a.dtype == e.dtype
    assert a.shape == e.shape
    np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(e).view(np.uint8))


def assert_close(actual, expected, n_eps=64):
  """Equal structure and dtypes; values within `n_eps` roundings of each leaf's largest."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == e.dtype
    eps = float(jnp.finfo(a.dtype).eps) if jnp.issubdtype(a.dtype, jnp.floating) else 0.0
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    np.testing.assert_allclose(a, e, rtol=0, atol=n_eps * eps * max(np.abs(e).max(initial=0), 1))


def norms_for_vectors(tree):
  """`tree` with the norms alone of what is tracked.

  The lower singular vectors of a random matrix hang on the last bit of its entries.
  """
  is_ours = lambda node: isinstance(node, lipjax.SingularVectors)
  read = lambda node: lipjax.read_spectral_norms(node) if is_ours(node) else node
  return jax.tree.map(read, tree, is_leaf=is_ours)


def types(tree):
  """Each leaf's `jax.typeof`: shape, dtype, weak type and sharding."""
  return jax.tree.map(jax.typeof, tree)
