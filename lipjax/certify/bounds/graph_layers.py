"""The layers of a graph: matrices where there are few values, frequencies where they are images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lipjax.certify.bounds.effort import Effort, is_worth
from lipjax.certify.bounds.graph import product_bounds
from lipjax.certify.bounds.image_layout import image_layer, image_widths
from lipjax.certify.bounds.images import images_of, of_channels
from lipjax.certify.bounds.layers import Layers, padded, scaled
from lipjax.certify.bounds.layout import Layout
from lipjax.certify.bounds.slots import Before, stacks_of
from lipjax.certify.maps import Known, live, norms_of
from lipjax.certify.norms import compute_norms


def layers_of(
  known: Known, outputs: Sequence[int], bounds: Mapping[int, Any], effort: Effort
) -> Layers | None:
  """The layers to the outputs, or None: not worth the effort, or nothing nonlinear.

  Args:
    known: about the graph.
    outputs: the nodes in question.
    bounds: of each node that they depend on, by another engine.
    effort: how much work they are worth.
  """
  plain, known = known, known.seen()
  order = live(known, outputs)
  stacks = stacks_of(known, order, outputs)
  sizes = [sum(known.nodes[slot.before].size for slot in stack) for stack in stacks]
  if len(stacks) == 1 or min(sizes) == 0 or effort == "fast":
    return None
  images, sources = None, [i for i in order if known.part(i) is None]
  if not is_worth(effort, [(1, size) for size in sizes]):
    # What is seen as a sum with a magnitude is not made 0 beside the image.
    known, order = of_channels(plain), live(plain, outputs)
    stacks, images = stacks_of(known, order, outputs), images_of(known, order)
    widths = None if images is None else image_widths(images, stacks)
    if images is None or widths is None or not is_worth(effort, widths):
      return None
    sources = images.sources(order, outputs)
  if any(i not in bounds for i in order):
    compute_norms(norms_of(known, order))
    bounds = product_bounds(known, order) | dict(bounds)
  layout = Layout(known, bounds, sources)
  # Inputs stand one after the other; of the values of a later layer some are not read again.
  n_of = lambda i: known.nodes[i].size
  n_values = n_of if images is None else lambda i: images.n_values(i)
  before: list[Before] = [(i, n_values(i)) for i in sources]
  layers = []
  for stack in stacks:
    if images is None or (layers and layers[-1].flips is None):
      layer = layout.layer(stack, before)
    else:
      layer = image_layer(layout, images, stack, before)
    if layer is None:
      return None
    layers.append(layer)
    before = [(slot.after, n_values(slot.before)) for slot in stack]
  layers = [layout.in_units(layer) for layer in padded(layers)]
  if known.part(sources[0]) is not None:
    layers[0] = scaled(layers[0], bounds[sources[0]])
  return Layers(layers, layers[-1].after)
