"""The same layers in a Python with PyTorch, orthogonium and deel-torchlip; prints JSON.

It imports nothing of lipjax or JAX: ``python parametrizations_torch.py REQUEST``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import sys
import time

import torch
from deel import torchlip
from orthogonium.layers import AdaptiveOrthoConv2d, OrthoLinear
from orthogonium.layers.conv.AOL.aol import AOLConv2D
from orthogonium.layers.conv.SLL.sll_layer import SDPBasedLipschitzDense
from orthogonium.reparametrizers import EXP_ORTHO_PARAMS, QR_ORTHO_PARAMS


def main() -> None:
  request = json.loads(sys.argv[1])
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  tasks = []
  for batch, n in request["dense"]:
    x = torch.randn(batch, n) / n**0.5
    peers = {
      "torch plain": torch.nn.Linear(n, n, bias=False),
      "orthogonium OrthoLinear": OrthoLinear(n, n, bias=False),
      "orthogonium OrthoLinear, QR": OrthoLinear(n, n, bias=False, ortho_params=QR_ORTHO_PARAMS),
      "orthogonium OrthoLinear, exp": OrthoLinear(n, n, bias=False, ortho_params=EXP_ORTHO_PARAMS),
      "torchlip SpectralLinear": torchlip.SpectralLinear(n, n, bias=False),
    }
    tasks.append((peers, x))
  for batch, n, hidden in request["residual"]:
    layer = SDPBasedLipschitzDense(n, n, hidden)
    tasks.append(({"orthogonium SDPBasedLipschitzDense": layer}, torch.randn(batch, n)))
  for batch, n, c in request["convolution"]:
    options = {"kernel_size": 3, "padding": 1, "bias": False}
    peers = {
      "torch plain": torch.nn.Conv2d(c, c, **options),
      "orthogonium AOLConv2D": AOLConv2D(c, c, **options),
      "orthogonium AdaptiveOrthoConv2d": AdaptiveOrthoConv2d(c, c, **options),
      "torchlip SpectralConv2d": torchlip.SpectralConv2d(c, c, **options),
    }
    tasks.append((peers, torch.randn(batch, c, n, n)))
  packages = ("torch", "orthogonium", "deel-torchlip")
  about = {name: importlib.metadata.version(name) for name in packages}
  rows = [_timed(peers, x, request["blocks"], request["steps"]) for peers, x in tasks]
  print(json.dumps({"about": about, "rows": rows}))


def _timed(peers, x, blocks: int, steps: int) -> dict[str, dict[str, float]]:
  """Medians over blocks, the layers in turn; a first block warms."""
  samples = {name: [] for name in peers}
  x = x.requires_grad_()
  for block in range(blocks + 1):
    for name, layer in peers.items():
      layer.train()
      begin = time.perf_counter()
      for _ in range(steps):
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).sin().sum().backward()
      if block:
        samples[name].append((time.perf_counter() - begin) / steps * 1e3)
  rows = {name: {"median_ms": statistics.median(values)} for name, values in samples.items()}
  for row in rows.values() if "torch plain" in rows else ():
    row["over_plain_ms"] = row["median_ms"] - rows["torch plain"]["median_ms"]
  return rows


if __name__ == "__main__":
  main()
