"""Runs lip4conv in a Python that has PyTorch: ``python convolutions_torch.py FOLDER``.

Every line in is a request, every line out its answer, both JSON. It imports nothing of
lipjax or JAX, and lip4conv from a folder that `convolutions_peers` has made.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import torch


def main() -> None:
  sys.path.insert(0, sys.argv[1])
  import bounds

  torch.set_num_threads(os.cpu_count())
  _answer({"torch": torch.__version__, "threads": torch.get_num_threads()})
  kernels = {}
  for line in sys.stdin:
    request = json.loads(line)
    path = request["kernel"]
    if path not in kernels:
      kernels = {path: torch.from_numpy(np.load(path))}
    bound = getattr(bounds, f"compute_{request['method']}")
    others = request["arguments"] | {"return_time": False}
    with torch.no_grad():
      _answer(_block(lambda: bound(kernels[path], **others), request["steps"]))  # noqa: B023


def _block(run, steps: int) -> dict[str, float]:
  """The mean time of some calls after one that warms, unless only one is wanted."""
  if steps > 1:
    run()
  begin = time.perf_counter()
  for _ in range(steps):
    value = run()
  seconds = (time.perf_counter() - begin) / steps
  return {"value": float(value), "seconds": seconds}


def _answer(value: dict) -> None:
  print(json.dumps(value), flush=True)


if __name__ == "__main__":
  main()
