"""Explanations say the same bounds, step by step, and where each step was written."""

import jax
import jax.numpy as jnp
import pytest
from reference import FLOAT, normal

import lipjax

W = normal(0, (4, 4), FLOAT)


def net(x):
  h = jnp.tanh(W @ x + 1)
  return jax.nn.softmax(3 * h) - h


@pytest.mark.first(1)
@pytest.mark.parametrize("domain", [{}, {"radius": 0.1}])
def test_steps_lead_to_the_bound(domain):
  x = jnp.zeros(4, FLOAT)
  said = lipjax.explain(net, **domain)(x)
  assert min(said.engines.values()) == pytest.approx(
    float(lipjax.lipschitz_upper_bound(net, **domain)(x)), rel=1e-5
  )
  names = [step.name for step in said.steps]
  assert names[0] == "input"
  assert {"scalar", "softmax", "sub"} <= set(names)
  assert said.steps[-1].bound == pytest.approx(said.engines["liplt"], rel=1e-5)
  for step in said.steps:
    assert all(k < step.place for k in step.reads)
    reached = sum(said.steps[k].bound for k in step.reads)
    assert step.bound <= max(step.gain * reached * (1 + 1e-4), 1)
    assert (step.width < 1e9) == (bool(domain) or step.name in ("scalar", "softmax", "mul", "sub"))
  assert any("test_explain.py" in step.line for step in said.steps)
  assert "softmax" in str(said)
  assert "upper bounds" in str(said)


def test_what_does_not_move_has_no_steps():
  assert lipjax.explain(lambda x: jnp.ones(2))(jnp.zeros(3)).steps == ()
