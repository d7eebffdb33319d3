"""The `mask` argument of the transformations, as optax means it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

Mask = Any | Callable[[Any], Any]


def masked(transformation: optax.GradientTransformationExtraArgs, mask: Mask | None):
  """`optax.masked`, with a check that the mask's leaves are booleans."""
  if mask is None:
    return transformation
  if callable(mask):
    return optax.masked(transformation, lambda params: _checked(mask(params)))
  return optax.masked(transformation, _checked(mask))


def _checked(mask):
  # A lone bool selects all or nothing; it is what a function of params gives when it is
  # called with a count.
  alone = isinstance(mask, (bool, np.bool_))
  for leaf in jax.tree.leaves(mask):
    if alone or not isinstance(leaf, (bool, np.bool_)):
      msg = (
        f"mask {'is' if alone else 'has a leaf'} {leaf!r}; expected a tree of"
        " bools like the params (or a prefix of it), or a function from params to one."
        " Under optax.inject_hyperparams a function is called as a schedule: list it in"
        " static_args=('mask',)."
      )
      raise ValueError(msg)
  return mask
