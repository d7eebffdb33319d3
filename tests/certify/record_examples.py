"""Of every record of a primitive or a pattern, functions of an array of shape (2, 3)."""

import jax
import jax.numpy as jnp
from jax import lax

from lipjax.certify.primitives import RECORDS

SHAPE = (2, 3)

#: Examples that need more than an array of that shape.
MORE = {
  "conv_general_dilated": [
    lambda x: lax.conv_general_dilated(
      x[None, ..., None], jnp.ones((2, 2, 1, 2)) / 3, (1, 1), [(1, 0), (0, 1)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  ],
  "scalar": [jnp.tanh, lambda x: x * jax.nn.sigmoid(x), lambda x: jnp.maximum(x, 0.5)],
  "normalized": [jax.nn.standardize, lambda x: x / (jnp.linalg.norm(x) + 0.1)],
  "row_norms": [lambda x: jnp.linalg.norm(x, axis=1), lambda x: x.std(0)],
  "atan2": [lambda x: jnp.arctan2(x, x[:, ::-1])],
  "clamp": [lambda x: lax.clamp(0.3, x, 0.5), lambda x: lax.clamp(x[:, ::-1], x, jnp.sin(x))],
  "select_and_scatter_add": [lambda x: _grad_of_max_pool(x)],
}  # fmt: skip


def _grad_of_max_pool(x):
  constant = jnp.arange(6.0).reshape(SHAPE)
  pool = lambda v: lax.reduce_window(v, -jnp.inf, lax.max, (1, 2), (1, 1), "VALID")
  return jax.vjp(pool, constant)[1](x[:, :2])[0]


def examples(transfer):
  """Of all names that a rule is for."""
  names = [name for name, record in RECORDS.items() if record.transfer is transfer]
  return [*RECORDS[names[0]].examples, *(fn for name in names for fn in MORE.get(name, ()))]


#: All of them.
EXAMPLES = [
  fn
  for transfer in dict.fromkeys(x.transfer for x in RECORDS.values())
  for fn in examples(transfer)
]
