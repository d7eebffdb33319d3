"""auto_LiRPA's bounds of Jacobians on l2 balls: ``python certify_torch.py NETWORK.npz``.

It runs in a Python that has PyTorch and auto_LiRPA, and imports nothing of lipjax or JAX. The file
holds weights and biases of dense layers in turn, an example `x` and `radii`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import sys
import time

import auto_LiRPA
import numpy as np
import torch
from auto_LiRPA.jacobian import JacobianOP
from auto_LiRPA.perturbations import PerturbationLpNorm


class Jacobian(torch.nn.Module):
  """Of a network at its input."""

  def __init__(self, network: torch.nn.Module):
    super().__init__()
    self.network = network

  def forward(self, x):
    """Outputs by inputs, for each of a batch."""
    return JacobianOP.apply(self.network(x), x)


def main() -> None:
  torch.set_num_threads(os.cpu_count() or 1)
  file = np.load(sys.argv[1])
  arrays = [torch.from_numpy(file[f"arr_{i}"]) for i in range(len(file.files) - 2)]
  x = torch.from_numpy(file["x"])
  model = auto_LiRPA.BoundedModule(Jacobian(relu_mlp(arrays)), x)
  found = {f"{radius:g}": on_ball(model, x, float(radius)) for radius in file["radii"]}
  about = {"auto_LiRPA": auto_LiRPA.__version__, "torch": torch.__version__}
  print(json.dumps(about | {"on_balls": found}))


def relu_mlp(arrays: list[torch.Tensor]) -> torch.nn.Module:
  layers: list[torch.nn.Module] = []
  for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
    layers += [torch.nn.Linear(*weight.T.shape), torch.nn.ReLU()]
    layers[-2].load_state_dict({"weight": weight, "bias": bias})
  return torch.nn.Sequential(*layers[:-1])


def on_ball(model: auto_LiRPA.BoundedModule, x: torch.Tensor, radius: float) -> dict[str, float]:
  """From ends of the Jacobian's entries to a norm, and the seconds of a second call.

  Its slopes are CROWN's: optimizing them changed no digit here, for 10 to 40 times as long.
  """
  ball = auto_LiRPA.BoundedTensor(x, PerturbationLpNorm(norm=2, eps=radius))
  find = lambda: model.compute_jacobian_bounds(ball, optimize=False)
  find()
  begin = time.perf_counter()
  ends = find()
  seconds = time.perf_counter() - begin
  lower, upper = (end.detach().double().numpy().reshape((-1, x.numel())) for end in ends)
  norm = lambda matrix: float(np.linalg.norm(matrix, 2))
  largest = norm(np.maximum(np.abs(lower), np.abs(upper)))
  around_middle = norm(lower / 2 + upper / 2) + norm(upper / 2 - lower / 2)
  return {"bound": min(largest, around_middle), "seconds": seconds}


if __name__ == "__main__":
  main()
