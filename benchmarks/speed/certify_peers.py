r"""What others bound a chain of dense layers with ReLU between by, written from their papers.

For a difference x of two inputs the differences after activations are :math:`\phi_i`, those before
:math:`v_i = W_i \phi_{i-1}`. A slope between a and b says
:math:`(\phi - a v)(b v - \phi) \ge 0` of each neuron; adding these, each times a multiplier of at
least 0, gives bounds that hold for all inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp


class Slopes(NamedTuple):
  """The lowest and the highest slope of each neuron of a layer; equal where it is stable."""

  lower: np.ndarray
  upper: np.ndarray


def relu_slopes(matrices: Sequence[np.ndarray]) -> list[Slopes]:
  """Those on all inputs."""
  return [Slopes(np.zeros(len(w)), np.ones(len(w))) for w in matrices[:-1]]


def norm_product(matrices: Sequence[np.ndarray]) -> float:
  return math.prod(float(np.linalg.norm(w, 2)) for w in matrices)


def eclipse_fast(matrices: Sequence[np.ndarray]) -> float:
  r"""ECLipsE-Fast (Xu and Sivaranjani, 2024), in closed form, for slopes in [0, 1].

  :math:`|x|^2 \ge \phi_i^T M_i \phi_i` with :math:`M_0 = I` and, with the multiplier
  :math:`\lambda = 2/g` of all neurons of a layer, :math:`g = \|G\|`,
  :math:`G = W_i M_{i-1}^{-1} W_i^T`: :math:`M_i = \lambda I - (\lambda/2)^2 G`.
  """
  inverse = np.eye(matrices[0].shape[1])
  for w in matrices[:-1]:
    gram = w @ inverse @ w.T
    norm = np.linalg.norm(gram, 2)
    inverse = np.linalg.inv(2 / norm * np.eye(len(w)) - gram / norm**2)
  return float(np.linalg.norm(matrices[-1] @ inverse @ matrices[-1].T, 2)) ** 0.5


class Program(NamedTuple):
  """Minimize ρ = y₀ over y ≥ 0 where constant + Σ yᵢ coefficientsᵢ is positive semidefinite."""

  constant: np.ndarray
  coefficients: np.ndarray


def lipsdp_neuron(matrices: Sequence[np.ndarray], slopes: Sequence[Slopes]) -> Program:
  r"""LipSDP-Neuron (Fazlyab et al., 2019), a multiplier for each neuron, for L² = ρ.

  In the input and the outputs z of the neurons that are not stable,

  .. math:: \rho |x|^2 - |W_L \phi_{L-1}|^2 - 2 \sum_k y_k (\phi_k - a_k v_k)(b_k v_k - \phi_k)

  is to be at least 0. Stable neurons are linear, which is the limit of a large multiplier. Of
  the input counts what the first layer sees: at most as many directions as it has neurons.
  """
  first = matrices[0]
  if first.shape[1] > len(first):
    first = np.linalg.qr(first.T)[1].T
  unstable = [s.lower < s.upper for s in slopes]
  n_inputs = first.shape[1]
  size = n_inputs + sum(int(mask.sum()) for mask in unstable)
  eye = np.eye(size)
  values, start, terms = eye[:n_inputs], n_inputs, [eye[:, :n_inputs] @ eye[:n_inputs]]
  for w, (lower, upper), mask in zip([first, *matrices[1:-1]], slopes, unstable, strict=True):
    before = w @ values
    values = lower[:, None] * before
    values[mask] = eye[start : start + mask.sum()]
    start += mask.sum()
    from_lower = (values - lower[:, None] * before)[mask]
    from_upper = (upper[:, None] * before - values)[mask]
    products = from_lower[:, :, None] * from_upper[:, None]
    terms.extend(-products - products.swapaxes(1, 2))
  outputs = matrices[-1] @ values
  return Program(-outputs.T @ outputs, np.stack(terms))


def solve_cvxopt(program: Program) -> float:
  """L by CVXOPT, which eliminates to as many unknowns as multipliers."""
  cvxopt = importlib.import_module("cvxopt")
  solvers, n = importlib.import_module("cvxopt.solvers"), len(program.coefficients)
  of = lambda array: cvxopt.matrix(np.ascontiguousarray(array))
  found = solvers.sdp(
    of(np.eye(n, 1)),
    Gl=of(-np.eye(n)),
    hl=of(np.zeros((n, 1))),
    Gs=[of(-program.coefficients.reshape((n, -1)).T)],
    hs=[of(program.constant)],
    options={"show_progress": False},
  )
  return _root(found["status"], "optimal", found["x"][0])


def solve_clarabel(program: Program) -> float:
  """L by Clarabel, whose unknowns are the entries of the matrix too."""
  clarabel = importlib.import_module("clarabel")
  n, size = program.coefficients.shape[:2]
  # The upper triangle by columns, off-diagonal entries times √2.
  columns, rows = np.tril_indices(size)
  scale = np.where(rows == columns, 1, math.sqrt(2))
  triangle = lambda array: array[..., rows, columns] * scale
  matrix = np.concatenate([-triangle(program.coefficients).T, -np.eye(n)])
  settings = clarabel.DefaultSettings()
  settings.verbose = False
  solution = clarabel.DefaultSolver(
    sp.csc_matrix((n, n)),
    np.eye(n)[0],
    sp.csc_matrix(matrix),
    np.concatenate([triangle(program.constant), np.zeros(n)]),
    [clarabel.PSDTriangleConeT(size), clarabel.NonnegativeConeT(n)],
    settings,
  ).solve()
  return _root(str(solution.status), "Solved", solution.x[0])


def _root(status: str, wanted: str, value: float) -> float:
  if status != wanted:
    msg = f"The solver ended with {status}."
    raise ArithmeticError(msg)
  return max(value, 0.0) ** 0.5


class Solver(NamedTuple):
  """Of a package, and up to how many neurons that are not stable it takes about a minute."""

  package: str
  solve: Callable[[Program], float]
  most: int


SOLVERS = (Solver("cvxopt", solve_cvxopt, 130), Solver("clarabel", solve_clarabel, 64))


def lipsdp_rows(
  matrices: Sequence[np.ndarray], slopes: Sequence[Slopes]
) -> dict[str, dict[str, Any]]:
  """A row for each solver: bound and seconds, or why there are none."""
  n_unstable, rows = sum(int((s.lower < s.upper).sum()) for s in slopes), {}
  for package, solve, most in SOLVERS:
    name = f"LipSDP-Neuron by {package}"
    if n_unstable > most:
      rows[name] = {"left_out": f"{n_unstable} neurons, more than {most}"}
    elif importlib.util.find_spec(package) is None:
      rows[name] = {"left_out": f"{package} is not installed"}
    else:
      try:
        rows[name] = clocked(lambda: solve(lipsdp_neuron(matrices, slopes)))  # noqa: B023
      except ArithmeticError as error:
        rows[name] = {"left_out": str(error)}
  return rows


def clocked(fn: Callable[[], float]) -> dict[str, float]:
  """The bound, and the seconds of a call; of a second one where the first is short."""
  first = _once(fn)
  return first if first["seconds"] > 1 else _once(fn)


def _once(fn: Callable[[], float]) -> dict[str, float]:
  begin = time.perf_counter()
  return {"bound": fn(), "seconds": time.perf_counter() - begin}


def auto_lirpa(
  python: str, layers: Sequence[Sequence[np.ndarray]], x: np.ndarray, radii: Sequence[float]
) -> dict[str, Any]:
  """For each radius what `certify_torch` finds, in a Python that has PyTorch and auto_LiRPA."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "network.npz"
    np.savez(path, *itertools.chain.from_iterable(layers), x=x, radii=radii)
    script = Path(__file__).with_name("certify_torch.py")
    done = subprocess.run(
      [python, str(script), str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
  return json.loads(done.stdout.splitlines()[-1])
