"""Ways to train in ``claims``, each with one strength to choose from as many candidates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import lipjax
from benchmarks.experiments.claims_networks import Network
from benchmarks.experiments.supervised_network import length
from lipjax.commands.demo_data import Split

NONE, L2, ADVERSARIAL = "none", "L2", "adversarial"
SPECTRAL, RESHAPED = "spectral decay", "spectral, reshaped"
CAP, PENALTY = "norms capped", "gradient penalty"

#: Of spectral decay, by either norm.
DECAYS = (0.004, 0.02, 0.1, 0.5)

Decay = Callable[[Any], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """How to train. Of what is not given, nothing is done.

  Attributes:
    strengths: of which one is chosen on validation images, ascending.
    loss: of weights, a batch and a strength.
    decay: from a strength to what is added to the gradients.
    cap: whether the strength is the largest norm of the weights that the network is applied
      with, by normalization.
  """

  strengths: tuple[float, ...]
  loss: Callable[[Any, Split, Any], jax.Array]
  decay: Decay = lambda strength: optax.identity()
  cap: bool = False

  def at_most(self, n: int) -> Method:
    """With so many strengths to choose from."""
    return dataclasses.replace(self, strengths=self.strengths[:n])


def methods(network: Network, radius: float) -> dict[str, Method]:
  """By name.

  Args:
    network: what is trained.
    radius: of the attack that is measured; adversarial training has radii around it.
  """
  losses = functools.partial(_losses, network)
  plain = lambda weights, batch, strength: losses(weights, batch.labels, batch.images).mean()
  spectral = functools.partial(lipjax.add_spectral_decay, layout=network.layout)

  def adversarial(weights, batch, far):
    towards = jax.grad(lambda x: losses(weights, batch.labels, x).sum())(batch.images)
    moved = jax.lax.stop_gradient(batch.images + far * towards / length(towards))
    both = (losses(weights, batch.labels, x).mean() for x in (batch.images, moved))
    return sum(both) / 2

  def penalized(weights, batch, strength):
    of_images = functools.partial(losses, weights, batch.labels)
    penalty = lipjax.gradient_penalty(of_images, batch.images, target=0.0)
    return of_images(batch.images).mean() + strength * penalty

  found = {
    NONE: Method((0.0,), plain),
    L2: Method((0.0005, 0.002, 0.008, 0.03), plain, _l2),
    SPECTRAL: Method(DECAYS, plain, spectral),
    ADVERSARIAL: Method(tuple(radius * x for x in (0.25, 0.5, 1, 2)), adversarial),
    CAP: Method((1.4, 2.0, 2.8, 4.0), plain, cap=True),
    PENALTY: Method((0.02, 0.1, 0.5, 2.0), penalized),
  }
  if network.name == "CNN":
    # What Flax's layout takes a convolution's kernel for, as the papers do.
    found[RESHAPED] = Method(DECAYS, plain, lipjax.add_spectral_decay)
  return found


def _losses(network, weights, labels, images):
  """Cross entropy of each image."""
  scores = network.logits(weights, images)
  return optax.softmax_cross_entropy_with_integer_labels(scores, labels)


def _l2(strength):
  kernels = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)
  return optax.add_decayed_weights(strength, mask=kernels)
