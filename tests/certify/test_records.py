"""Every primitive and pattern has an example, and no slope of any is above its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certify.jacobians import compiled
from certify.record_examples import SHAPE, examples
from reference import FLOAT

import lipjax
from lipjax.certify.compiled import nodes_of
from lipjax.certify.primitives import RECORDS

BOX = (0.25, 0.75)

#: What has no slope by itself; it is a part of other functions, or raises.
PARTS = """abs acos acosh and asin asinh atan atanh cbrt ceil cos cosh eq erf erf_inv erfc exp exp2
expm1 floor ge gt integer_pow is_finite le log log1p logistic lt ne nextafter not or pow rem round
rsqrt sign sin sinh sqrt square tan tanh xor"""
JUMPS = "argmax argmin reduce_and reduce_or reduce_xor reduce_precision"
#: What this JAX writes with other primitives, or a pattern takes for something else.
ELSEWHERE = {"add_any", "clamp", "max", "min", "scatter-sub", "split", "stack"}
ELSEWHERE |= {"tile", "unstack", "select_n"}

LINEAR_OR_SO = set(RECORDS) - set(PARTS.split()) - set(JUMPS.split())
TRANSFERS = list(dict.fromkeys(RECORDS[name].transfer for name in sorted(LINEAR_OR_SO)))
CASES = [
  # By default the first example of every other rule.
  pytest.param(
    transfer, i, id=f"{transfer.__name__}-{i}", marks=[pytest.mark.slow] * bool(i > 0 or k % 2)
  )
  for k, transfer in enumerate(TRANSFERS)
  for i in range(max(len(examples(transfer)), 1))
]


def test_every_record_is_met_by_an_example():
  x = jnp.zeros(SHAPE, FLOAT)
  met = {node.name for t in TRANSFERS for fn in examples(t) for node in nodes_of(fn, x)}
  assert LINEAR_OR_SO - met <= ELSEWHERE


@pytest.mark.first(13)
@pytest.mark.parametrize(("transfer", "i"), CASES)
def test_no_slope_is_above_the_bound_of_an_example(transfer, i):
  fn = examples(transfer)[i]
  middle = jnp.full(SHAPE, 0.5, FLOAT)
  upper = float(compiled(lipjax.lipschitz_upper_bound(fn, box=BOX))(middle))
  points = np.random.default_rng(0).uniform(*BOX, (12, *SHAPE))
  points[0], points[1] = BOX
  slopes = jax.jit(jax.vmap(jax.jacfwd(lambda x: jnp.ravel(fn(x)))))(jnp.asarray(points, FLOAT))
  # JAX has no derivative of a standard deviation of equal numbers.
  matrices = np.nan_to_num(np.asarray(slopes, np.float64)).reshape((len(points), -1, 6))
  found = np.linalg.norm(matrices, 2, axis=(1, 2)).max()
  assert found <= upper * (1 + 1e-5)
  assert upper <= 12 * found + 1e-5
