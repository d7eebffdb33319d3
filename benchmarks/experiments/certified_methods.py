"""Ways to train a classifier that is to be certified, each with one strength to choose."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lipjax

WIDTH, CLASSES = 64, 10


class Method(NamedTuple):
  """How to train.

  Attributes:
    strengths: of which one is chosen on validation images.
    init: from parameters to what is kept from step to step.
    loss: of parameters, what is kept, a batch and a strength; and what is kept next.
    weights: those that the trained network is applied with.
    logits: of those weights and flat images.
    params: from a key and the number of pixels to what is trained.
  """

  strengths: tuple[float, ...]
  init: Callable[[Any], Any]
  loss: Callable[..., tuple[jax.Array, Any]]
  weights: Callable[[Any, Any, Any], Any] = lambda params, kept, strength: params
  logits: Callable[[Any, jax.Array], jax.Array] = lambda params, x: logits(params, x)
  params: Callable[[jax.Array, int], Any] = lambda key, n_pixels: perceptron(key, n_pixels)


def perceptron(key: jax.Array, n_pixels: int) -> list[tuple[jax.Array, jax.Array]]:
  """Of two hidden layers."""
  return init_params(key, list(itertools.pairwise((n_pixels, WIDTH, WIDTH, CLASSES))))


def residual(key: jax.Array, n_pixels: int) -> list[tuple[jax.Array, jax.Array]]:
  """A linear layer, two residual ones, and a linear one."""
  block = (WIDTH, 2 * WIDTH)
  return init_params(key, [(n_pixels, WIDTH), block, block, (WIDTH, CLASSES)])


def init_params(key: jax.Array, sizes: list[tuple[int, int]]) -> list[tuple[jax.Array, jax.Array]]:
  """Kernels of variance 2/inputs, and biases of zero."""
  keys = jax.random.split(key, len(sizes))
  draw = lambda k, size: jax.random.normal(k, size) * (2 / size[0]) ** 0.5
  return [(draw(k, size), jnp.zeros(size[1])) for k, size in zip(keys, sizes, strict=True)]


def logits(params: Any, x: jax.Array, activation: Any = jax.nn.relu) -> jax.Array:
  """A perceptron of two hidden layers, of flat images with pixels in [0, 1]."""
  x = x - 0.5
  for w, b in params[:-1]:
    x = activation(x @ w + b)
  return x @ params[-1][0] + params[-1][1]


def sorted_logits(params: Any, x: jax.Array) -> jax.Array:
  """The same with GroupSort of pairs."""
  return logits(params, x, lipjax.group_sort)


def residual_weights(params: Any, *_: Any) -> Any:
  """Orthogonal first and last, and both kernels of each residual layer."""
  (first, b), *blocks, (last, c) = params
  ends = lipjax.orthogonal_map(kernels([(first, b), (last, c)]))
  inner = [(lipjax.sll_kernels(w), bias) for w, bias in blocks]
  return [(ends["dense_0"]["kernel"], b), *inner, (ends["dense_1"]["kernel"], c)]


def residual_logits(params: Any, x: jax.Array) -> jax.Array:
  """Of those, and flat images."""
  (first, b), *blocks, (last, c) = params
  x = (x - 0.5) @ first + b
  for (inner, outer), bias in blocks:
    x = x - jax.nn.relu(x @ inner + bias) @ outer
  return x @ last + c


def methods(n_pixels: int) -> dict[str, Method]:
  """By name."""
  example, cross_entropy = jnp.zeros(n_pixels), optax.softmax_cross_entropy_with_integer_labels
  by_norms = lipjax.margin_upper_bounds(logits, argnums=1, effort="fast")
  carried = lipjax.carried_margin_upper_bounds(logits, argnums=1)

  def plain(params, kept, batch, strength):
    del strength
    return cross_entropy(logits(params, batch.images), batch.labels).mean(), kept

  def capped(params, vectors, batch, cap):
    vectors = lipjax.update_singular_vectors(kernels(params), vectors)
    return plain(at_most(params, vectors, cap), None, batch, None)[0], vectors

  def of_radii(params, bounds, batch, temperature):
    scores = logits(params, batch.images)
    own = jnp.take_along_axis(scores, batch.labels[:, None], axis=1)
    radii = (own - scores) / (bounds + jnp.eye(CLASSES))[batch.labels]
    return cross_entropy(-temperature * radii, batch.labels).mean()

  def through_norms(params, kept, batch, temperature):
    return of_radii(params, by_norms(params, example), batch, temperature), kept

  def through_ellipsoids(params, kept, batch, temperature):
    bounds, kept = carried.update(kept, params, example)
    return of_radii(params, bounds, batch, temperature), kept

  def by_construction(weights, of, start=perceptron):
    """Of norm 1, trained by the cross entropy of logits times a temperature."""

    def loss(params, kept, batch, temperature):
      scores = temperature * of(weights(params, kept, temperature), batch.images)
      return cross_entropy(scores, batch.labels).mean(), kept

    return Method((2.0, 4.0, 8.0, 16.0), nothing, loss, weights, of, start)

  def sorted_of(parametrize):
    weights = lambda params, kept, temperature: of_kernels(parametrize, params)
    return by_construction(weights, sorted_logits)

  nothing, temperatures = (lambda params: None), (3.0, 6.0, 12.0, 24.0)
  start = lambda params: lipjax.init_singular_vectors(kernels(params))
  return {
    "plain": Method((0.0,), nothing, plain),
    "every norm capped": Method((1.0, 1.4, 2.0, 2.8), start, capped, at_most),
    "through norms": Method(temperatures, nothing, through_norms),
    "through ellipsoids": Method(
      temperatures, lambda params: carried.init(params, example), through_ellipsoids
    ),
    "orthogonal, GroupSort": sorted_of(lipjax.orthogonalize),
    "almost orthogonal, GroupSort": sorted_of(lipjax.almost_orthogonalize),
    "residual (SLL)": by_construction(residual_weights, residual_logits, residual),
  }


def kernels(params: Any) -> dict[str, dict[str, jax.Array]]:
  """Without biases, as Flax names them."""
  return {f"dense_{i}": {"kernel": w} for i, (w, _) in enumerate(params)}


def at_most(params: Any, vectors: Any, cap: Any) -> Any:
  """With the norms of kernels capped."""
  capped = lambda weights: lipjax.spectral_normalize(weights, vectors, mode="cap", target=cap)
  return of_kernels(capped, params)


def of_kernels(fn: Callable[[Any], Any], params: Any) -> Any:
  """With a function of the kernels in their place."""
  found = fn(kernels(params))
  return [(found[f"dense_{i}"]["kernel"], b) for i, (_, b) in enumerate(params)]
