"""Layers of images: a matrix for each frequency, and from images to values that are none."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.certify.bounds.image_ways import Way, start_way, way_back
from lipjax.certify.bounds.images import Images
from lipjax.certify.bounds.layers import RawLayer
from lipjax.certify.bounds.layout import Layout
from lipjax.certify.bounds.slots import Before, Slot, ways_to
from lipjax.certify.bounds.torus import Torus, spectra
from lipjax.certify.facts import LipschitzPart, ScalarPart


def image_widths(images: Images, stacks: Sequence[Sequence[Slot]]) -> list[tuple[int, int]] | None:
  """How many blocks each layer has, and how many values; None if some are images and some not."""
  nodes, widths, was_image = images.known.nodes, [], True
  for stack in stacks:
    tori = {images.torus.get(slot.before) for slot in stack}
    (torus, *others) = tori
    is_image = torus is not None
    readers = [images.known.part(slot.reader) for slot in stack if slot.reader is not None]
    is_joint = any(isinstance(part, LipschitzPart) for part in readers)
    # After pools there are fewer frequencies; then there are nothing but pools.
    after = {images.torus.get(slot.after) for slot in stack if slot.after is not None}
    if others or (is_image and (not was_image or is_joint or len(after) > 1)):
      return None
    if torus is None:
      widths.append((1, sum(nodes[slot.before].size for slot in stack)))
    else:
      n = sum(images.channels(slot.before) for slot in stack)
      widths.append((len(torus.frequencies), 2 * n))
    was_image = is_image
  return widths


def image_layer(
  layout: Layout, images: Images, slots: Sequence[Slot], before: Sequence[Before]
) -> RawLayer | None:
  """From images before it; None if something on the way is no map of images."""
  tori = {images.torus.get(i) for i, _ in before if i is not None}
  if len(tori) != 1 or None in tori:
    return None
  if slots[0].before in images.torus:
    return _to_images(layout, images, slots, before)
  return _to_values(layout, images, slots, before)


def _to_images(
  layout: Layout, images: Images, slots: Sequence[Slot], before: Sequence[Before]
) -> RawLayer | None:
  back, nodes = functools.partial(way_back, images), {i for i, _ in before}
  to = lambda i: ways_to(images.known, i, nodes, start_way(images, i), back, Way.plus)
  ways = [to(slot.before) for slot in slots]
  known = [way for found in ways if found is not None for way in found.values()]
  if None in ways or not known or not all(way.is_like(known[0]) for way in known):
    return None
  frequencies, torus = known[0].frequencies, _torus(images, before)
  rows, lost = [], []
  for slot, found in zip(slots, ways, strict=True):
    of = found or {}
    shape = (*frequencies.shape[:2], 2, images.channels(slot.before), 2)
    part = lambda i, n, of=of, shape=shape: (
      of[i].matrix.reshape((*shape, n)) if i in of else jnp.zeros((*shape, n), layout.wide)
    )
    rows.append(jnp.concatenate([part(i, n) for i, n in before], -1))
    lost.append([of[i].lost if i in of else None for i, _ in before])
  matrix = jnp.concatenate(rows, -3)
  matrix = matrix.reshape((*frequencies.shape[:2], 2 * matrix.shape[3], -1)).astype(layout.wide)
  sizes = [images.channels(slot.before) for slot in slots]
  slopes = [_slopes(layout, images, slot) for slot in slots]
  xp = jnp if any(isinstance(x, jax.Array) for x in slopes) else np
  places, flips = torus.places(frequencies % np.asarray(torus.sizes))
  return RawLayer(
    matrix,
    layout.lost(slots, before, lost, matrix.shape[-2:]),
    xp.tile(xp.concatenate(slopes, 1), (1, 2)).astype(layout.wide),
    np.tile(layout.places(*zip(*before, strict=True)), 2),
    np.tile(layout.places([slot.before for slot in slots], sizes), 2),
    np.tile(layout.places([slot.read for slot in slots], sizes), 2),
    np.tile(np.arange(sum(sizes)), 2),
    places,
    flips,
  )


def _to_values(
  layout: Layout, images: Images, slots: Sequence[Slot], before: Sequence[Before]
) -> RawLayer | None:
  torus = _torus(images, before)
  count, rows, lost = len(torus.frequencies), [], []
  for slot in slots:
    maps, size = layout.maps(slot, {i for i, _ in before}), images.known.nodes[slot.before].size
    if maps is None:
      return None
    blocks, errors = [], []
    for i, n in before:
      if i is None or i not in maps:
        blocks.append(jnp.zeros((count, size, 2, n), layout.wide))
        errors.append(None)
        continue
      found, rounding = spectra(_in_window(images, i, maps[i][0].astype(layout.wide)), torus)
      blocks.append(found.reshape((count, size, 2, n)))
      errors.append(maps[i][1] + rounding)
    rows.append(jnp.concatenate(blocks, -1))
    lost.append(errors)
  matrix = jnp.concatenate(rows, 1)
  matrix = matrix.reshape((count, 1, matrix.shape[1], -1))
  return RawLayer(
    matrix,
    layout.lost(slots, before, lost, matrix.shape[-2:]),
    before=np.tile(layout.places(*zip(*before, strict=True)), 2),
    blocks=np.arange(count)[:, None],
    **layout.functions(slots),
  )


def _torus(images: Images, before: Sequence[Before]) -> Torus:
  return next(images.torus[i] for i, _ in before if i is not None)


def _in_window(images: Images, i: int, rows: jax.Array) -> jax.Array:
  """(rows, channels, image axes)."""
  axes = [1 + images.axes[i].channel, *(1 + axis for axis in images.axes[i].spatial)]
  others = [axis for axis in range(1, rows.ndim) if axis not in axes]
  moved = jnp.transpose(rows, (0, *axes, *others))
  return moved.reshape(moved.shape[: 1 + len(axes)])


def _slopes(layout: Layout, images: Images, slot: Slot) -> Any:
  """Of a function w and both slopes, (3, channels), with 0 between, as beside the image."""
  n = images.channels(slot.before)
  weight, *ends = layout.slopes(slot)
  if slot.reader is None:
    return np.broadcast_to(np.asarray([weight, *ends], np.float64)[:, None], (3, n))
  part = images.known.part(slot.reader)
  xp = jnp if isinstance(part, ScalarPart) and isinstance(part.lower, jax.Array) else np
  axes = images.axes[slot.before]
  others = tuple(a for a in range(len(axes.spatial) + 2) if a != axes.channel)
  full = [xp.broadcast_to(xp.asarray(x), images.known.nodes[slot.before].shape) for x in ends]
  lower, upper = xp.min(full[0], axis=others), xp.max(full[1], axis=others)
  return xp.stack([xp.full(n, weight), xp.minimum(lower, 0), xp.maximum(upper, 0)])
