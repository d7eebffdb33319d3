"""Slopes that are searched for in balls and boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipjax

DOMAINS, PLACES = ["ball", "box", "both"], [(10.0, 1e-2), (1e-3, 1e-4), (0.0, 30.0)]
CASES = [
  pytest.param(domain, *place, marks=[] if i == j == 0 else pytest.mark.slow)
  for i, domain in enumerate(DOMAINS)
  for j, place in enumerate(PLACES)
]


@pytest.mark.thorough
@pytest.mark.parametrize(("domain", "distance", "size"), CASES)
def test_starts_lie_in_the_domain(domain, distance, size):
  """A slope outside of it is not found, and the one in its middle is, up to rounding of `fn`."""
  rng = np.random.default_rng(0)
  center = rng.standard_normal(4)
  center = np.asarray(center * distance / np.linalg.norm(center), np.float32)
  w = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
  half = np.float32(size / 2)
  options = {
    "ball": {"radius": size},
    "box": {"box": (center - half, center + half)},
    "both": {"radius": size, "box": (center - half, center + half)},
  }[domain]

  def fn(x):
    away = x - center
    # Of all inputs beyond the domain, not those in it.
    out = jnp.maximum(jnp.linalg.norm(away + 1e-30) - size * 1.00001, 0)
    if domain != "ball":
      out = jnp.maximum(jnp.abs(away) - half * 1.00001, 0).sum()
    return jnp.append(jnp.tanh(w @ x / max(size, 1)) * max(size, 1), 1e4 * out)

  lower, upper, _ = lipjax.lipschitz_bounds(lambda x: fn(x)[:3], n_starts=16, **options)(center)
  found = lipjax.lipschitz_lower_bound(fn, n_starts=16, **options)(center)
  jacobian = np.asarray(jax.jacfwd(lambda x: fn(x)[:3])(center), np.float64)
  at_center = np.linalg.norm(jacobian, 2)
  # Of two inputs as far apart as the domain is wide, what `rounding` takes away.
  lost = 16 * 2 * np.finfo(np.float32).eps * np.linalg.norm(fn(center)) / size
  for slope in (lower, found):
    assert at_center * (1 - 1e-2) - 4 * lost <= slope <= upper


def test_kinks_out_of_reach_do_not_pull():
  """Sixty-three of them would be worth more than the one that is in the ball, on the other side."""

  def fn(x):
    units = jax.nn.relu(jnp.append(jnp.full(63, x[0] - 100), -x[0] - 0.5))
    return x[0] + units[:-1].sum() - 3 * units[-1]

  bound = lipjax.lipschitz_lower_bound(fn, radius=1.0, n_starts=16)
  assert 3.999 <= float(bound(jnp.zeros(64))) <= 4
