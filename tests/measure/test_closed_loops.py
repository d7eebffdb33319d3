"""Tracked norms in training loops that act on them: within 1 % of the exact ones.

The loops are hard on purpose. A decay presses down the singular value that it follows until
the next one overtakes it; under normalization the gradient has no part along the top
direction, so all others grow; random updates of the size of the weights leave nothing to
follow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FLOAT, dense_convolution, normal, top_sigma

import lipjax
from lipjax import Convolution, Dense

OPERATORS = {
  "dense": (Dense(), (256, 192)),
  "small": (Dense(), (64, 48)),
  "stacked": (Dense((1,), (2,), (0,)), (3, 96, 64)),
  "convolution": (Convolution((8, 8)), (3, 3, 4, 6)),
  "circular": (Convolution((6, 6), padding="CIRCULAR"), (3, 3, 6, 6)),
}
QUICK = ("dense", "circular")
N_UPDATES, SETTLED = 60, 10


def exact_norm(operator, w):
  w = np.asarray(w, np.float64)
  if isinstance(operator, Convolution):
    return top_sigma(dense_convolution(operator, w))[0]
  return top_sigma(w)


def start(name):
  operator, shape = OPERATORS[name]
  fan_in = np.prod(shape) / shape[-1] / (shape[0] if name == "stacked" else 1)
  return operator, normal(0, shape) / np.sqrt(fan_in)


def task_gradient(operator, w, step):
  """Of a regression towards another weight, on a batch of its own at every step."""
  target = normal(1, w.shape) / jnp.sqrt(w.size / w.shape[-1])
  n = len(operator.batch_shape(w.shape))
  x = jax.random.normal(jax.random.key(step), (16, *operator.input_shape(w.shape)), FLOAT)
  both = lambda w: jax.vmap(functools.partial(operator.apply, w))(x)
  outputs = both(w).size / 16 / max(w.shape[0] if n else 1, 1)
  loss = lambda w: 0.5 * jnp.sum((both(w) - both(target)) ** 2) / (16 * outputs) * w.shape[-1]
  return jax.grad(loss)(w)


def lag_under(loop, operator, w, n_updates=N_UPDATES):
  """Relative deviations of the tracked norms, one a update, and steps an update.

  ``loop`` is ``(init, step)``, with ``step(i, params, state)`` giving the params whose norm was
  measured, the new state, and what was measured.
  """
  init, step = loop
  params = {"w": w}
  state, step = init(params), jax.jit(step)
  lags, steps = [], []
  for i in range(n_updates):
    params, measured, state, vectors = step(i, params, state)
    exact = exact_norm(operator, measured["w"])
    tracked = np.asarray(lipjax.read_spectral_norms(vectors)["w"], np.float64)
    lags.append(np.max(np.abs(tracked / exact - 1)))
    steps.append(int(vectors.steps))
  return np.array(lags), np.diff(steps)


def decay_loop(operator, optimizer, **options):
  tx = optax.chain(lipjax.add_spectral_decay(0.3, layout={"w": operator}, **options), optimizer)

  def step(i, params, state):
    gradient = {"w": task_gradient(operator, params["w"], i)}
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), params, state, state[0].vectors

  return tx.init, step


def normalization_loop(operator, optimizer):
  layout = {"w": operator}

  def init(params):
    return lipjax.init_singular_vectors(params, layout=layout), optimizer.init(params)

  def step(i, params, state):
    vectors, opt_state = state
    vectors = lipjax.update_singular_vectors(params, vectors, layout=layout)
    normalize = lambda params: lipjax.spectral_normalize(params, vectors, layout=layout)
    normalized, pull_back = jax.vjp(normalize, params)
    gradient = pull_back({"w": task_gradient(operator, normalized["w"], i)})[0]
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), params, (vectors, opt_state), vectors

  return init, step


def ball_loop(operator, optimizer, *, random):
  """The norm that is tracked is that of the weights before they are scaled."""
  ball = lipjax.keep_params_in_spectral_ball(1.5, layout={"w": operator})
  tx = optax.chain(optimizer, ball)

  def step(i, params, state):
    noise = jax.random.normal(jax.random.key(i), params["w"].shape, FLOAT)
    gradient = {"w": noise if random else -task_gradient(operator, params["w"], i)}
    raw, _ = optimizer.update(gradient, state[0], params)
    updates, state = tx.update(gradient, state, params)
    candidate = optax.apply_updates(params, raw)
    return optax.apply_updates(params, updates), candidate, state, state[1].vectors

  return tx.init, step


LOOPS = {
  "decay_sgd": lambda op: decay_loop(op, optax.sgd(0.05, momentum=0.9)),
  "decay_adam": lambda op: decay_loop(op, optax.adam(1e-3)),
  "decay_adam_fast": lambda op: decay_loop(op, optax.adam(1e-2)),
  "normalization": lambda op: normalization_loop(op, optax.adam(1e-2)),
  "normalization_slow": lambda op: normalization_loop(op, optax.adam(1e-3)),
  "ball": lambda op: ball_loop(op, optax.adam(1e-2), random=False),
  "ball_random": lambda op: ball_loop(op, optax.sgd(0.5), random=True),
}
#: With so few weights these move the norm of a convolution by several percent an update, and
#: some updates are 1 to 5 % low (docs: guarantees).
TOO_FAST = {("decay_sgd", "convolution"), ("decay_sgd", "circular"),
            ("decay_adam_fast", "convolution"), ("decay_adam_fast", "circular")}  # fmt: skip
#: At these rates the other loops are harder.
EASY = {
  ("decay_adam", "dense"),
  ("normalization_slow", "dense"),
  ("normalization_slow", "circular"),
}


def is_quick(loop, name):
  """Small matrices are hardest to normalize, and as the large ones elsewhere."""
  if name == "small":
    return loop == "normalization"
  return name in QUICK and (loop, name) not in EASY


CASES = [
  pytest.param(
    loop,
    name,
    id=f"{loop}-{name}",
    marks=[] if is_quick(loop, name) else pytest.mark.slow,
  )
  for loop in LOOPS
  for name in OPERATORS
  if (loop, name) not in TOO_FAST
]


@pytest.mark.first(3)
@pytest.mark.parametrize(("loop", "name"), CASES)
def test_tracked_within_a_percent_at_every_update(loop, name):
  operator, w = start(name)
  lags, steps = lag_under(LOOPS[loop](operator), operator, w)
  lags, steps = lags[SETTLED:], steps[SETTLED:]
  print(f"{loop} {name}: worst {lags.max():.2%}, mean {lags.mean():.3%}, {steps.mean():.2f} steps")
  assert lags.max() < 0.01
  assert steps.mean() < (12 if "random" in loop else 3)
