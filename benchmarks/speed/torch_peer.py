"""The small CNN of `spectral_norm` in PyTorch, where that is installed."""

from __future__ import annotations

import importlib.util

import numpy as np

from benchmarks.speed.timing import Case


def torch_cases(
  images: np.ndarray, labels: np.ndarray, features: tuple[int, ...]
) -> dict[str, Case]:
  """Training steps without and with `torch.nn.utils.parametrizations.spectral_norm`."""
  if importlib.util.find_spec("torch") is None:
    return {}
  import torch

  torch.manual_seed(0)
  x = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))
  y = torch.from_numpy(np.array(labels)).long()

  def step_of(wrap):
    layers, channels = [], x.shape[1]
    for i, width in enumerate(features):
      layer = torch.nn.Conv2d(channels, width, 3, stride=2 if i else 1, padding=1)
      layers += [wrap(layer), torch.nn.ReLU()]
      channels = width
    size = torch.nn.Sequential(*layers)(x[:1]).numel()
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), wrap(torch.nn.Linear(size, 10)))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def step(carry):
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(net(x), y).backward()
      optimizer.step()
      return carry

    return Case(step, 0.0, 0.0)

  return {
    "torch_plain": step_of(lambda layer: layer),
    "torch": step_of(torch.nn.utils.parametrizations.spectral_norm),
  }
