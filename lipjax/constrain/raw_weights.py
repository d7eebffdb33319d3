"""Raw weights of a layer, and logarithms of scales, as what is computed with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lipjax.operators.products import compute_dtype

#: Logarithms of scales beyond it count as it, so that scales, inverses and ratios are normal.
LARGEST_LOG_SCALE = 20.0


def wide_weights(x: jax.Array, name: str) -> jax.Array:
  """In float32 or wider; raises for what is no floating-point array."""
  check_floating(x, name)
  return jnp.asarray(x, compute_dtype(x.dtype))


def wide_scales(log_scale: jax.Array, hidden: int, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The scales, one for each hidden entry."""
  if jnp.shape(log_scale) != (hidden,):
    msg = f"log_scale has shape {jnp.shape(log_scale)}; expected {(hidden,)}, one per hidden entry."
    raise ValueError(msg)
  bounded = jnp.clip(jnp.asarray(log_scale, dtype), -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
  return jnp.exp(bounded)


def check_floating(x: jax.Array, name: str) -> None:
  """Raises for integers, of which results would be rounded to integers too."""
  if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
    msg = f"{name} has dtype {jnp.result_type(x)}; expected floating-point numbers."
    raise ValueError(msg)
