"""What others say of a convolution's norm: reshaped kernels, FFT and SVD, lip4conv."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.speed.convolutions_rows import Row
from benchmarks.speed.convolutions_truth import symbols

#: Bounds of lip4conv; the one of 2024 convolves a kernel with itself in every step.
LIP4CONV = {
  "lip4conv 2023, 5 steps": ("delattre2023", 5),
  "lip4conv 2023, 6 steps": ("delattre2023", 6),
  "lip4conv 2024, 4 steps": ("delattre2024", 4),
}
#: Where that last one takes more than about two seconds on two cores.
OPERATIONS_2024 = 2e11


def reshaped_norm(kernel: np.ndarray) -> float:
  """What Flax's and PyTorch's spectral normalization take for the norm."""
  matrix = kernel.astype(np.float64).reshape((-1, kernel.shape[-1]))
  return float(np.linalg.svd(matrix, compute_uv=False)[0])


def fft_svd(row: Row, kernel: jnp.ndarray) -> jnp.ndarray:
  """Sedghi et al. (2019): singular values of all symbols, on a circle that is sound."""
  return jnp.linalg.svd(symbols(jnp, row, kernel), compute_uv=False).max()


class Lip4Conv:
  """lip4conv in a process of its own, since it needs PyTorch; a context manager.

  Args:
    checkout: of github.com/blaisedelattre/lip4conv.
    python: an interpreter with torch and numpy.
  """

  def __init__(self, checkout: Path, python: str):
    self._folder = tempfile.TemporaryDirectory()
    self.path = Path(self._folder.name)
    digest = hashlib.sha256()
    for name in ("bounds.py", "spectral_rescaling.py"):
      # It puts tensors onto a GPU wherever they were; a copy without that runs here.
      text = (checkout / name).read_text().replace(".cuda()", "")
      (self.path / name).write_text(text)
      digest.update(text.encode())
    self._process = subprocess.Popen(
      [python, str(Path(__file__).with_name("convolutions_torch.py")), str(self.path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self._read() | {"lip4conv_sha256_without_cuda": digest.hexdigest()}

  def __enter__(self) -> Lip4Conv:
    return self

  def __exit__(self, *error: object) -> None:
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._folder.cleanup()

  def requests(self, row: Row, kernel: np.ndarray) -> dict[str, dict[str, Any]]:
    """A request for every bound that is defined for this convolution, by name."""
    if not row.is_plain:
      return {}
    digest = hashlib.sha256(kernel.tobytes()).hexdigest()[:16]
    path = str(self.path / f"{digest}.npy")
    np.save(path, np.ascontiguousarray(kernel.transpose((3, 2, 0, 1))))
    found = {}
    for name, (method, n_iter) in LIP4CONV.items():
      arguments = {"n_iter": n_iter}
      if method == "delattre2023":
        arguments["n"] = row.circle
      elif _operations_2024(row, n_iter) > OPERATIONS_2024:
        continue
      found[name] = {"kernel": path, "method": method, "arguments": arguments}
    return found

  def block(self, request: dict[str, Any], steps: int) -> dict[str, float]:
    """The bound, and the mean seconds of so many calls."""
    self._process.stdin.write(json.dumps(request | {"steps": steps}) + "\n")
    self._process.stdin.flush()
    return self._read()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"lip4conv's process ended with {self._process.wait()}.")
    return json.loads(line)


def _operations_2024(row: Row, n_iter: int) -> float:
  """Of its last convolution, which is most of it."""
  side = 2 ** (n_iter - 1) * (row.taps - 1) + 1
  return 2.0 * max(row.c_in, row.c_out) ** 3 * side**2 * (2 * side - 1) ** 2
