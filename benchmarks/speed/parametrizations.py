"""Training steps of layers that are 1-Lipschitz by construction, beside PyTorch's libraries."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import lipjax
from benchmarks.speed.timing import compare, compile_case

BLOCKS, STEPS = 5, 3
#: Batch, features and, of residual layers, hidden entries.
DENSE = ((128, 128), (128, 512))
RESIDUAL = ((128, 256, 512),)
#: Batch, pixels along an axis, channels.
CONVOLUTION = ((32, 16, 64),)
TORCH = Path(__file__).with_name("parametrizations_torch.py")

Step = Callable[[Any, jax.Array], jax.Array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--blocks", type=int, default=BLOCKS, help="samples of each case")
  parser.add_argument(
    "--torch-python", help="a Python with PyTorch, orthogonium and deel-torchlip, to run these too"
  )


def run(blocks: int = BLOCKS, torch_python: str | None = None) -> dict[str, Any]:
  """Milliseconds of a loss and its derivative in the raw weights and the input, for each layer."""
  tasks = {
    **{f"dense {n}, batch {b}": _dense(b, n) for b, n in DENSE},
    **{f"residual {n}-{h}, batch {b}": _residual(b, n, h) for b, n, h in RESIDUAL},
    **{f"3x3, {c} channels, {b}x{n}x{n}": _convolution(b, n, c) for b, n, c in CONVOLUTION},
  }
  rows = {name: _timed(cases, blocks) for name, cases in tasks.items()}
  result: dict[str, Any] = {"benchmark": "parametrizations", "rows": rows}
  if torch_python is not None:
    sizes = {"dense": DENSE, "residual": RESIDUAL, "convolution": CONVOLUTION}
    request = json.dumps(sizes | {"blocks": blocks, "steps": STEPS})
    command = [torch_python, str(TORCH), request]
    peers = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    result["torch"] = peers.pop("about")
    for name, row in zip(rows, peers["rows"], strict=True):
      rows[name] |= row
  return result


def show(result: dict[str, Any]) -> None:
  table = Table(title="ms of a forward and backward pass")
  for column in ("layer", "weights", "ms", "over plain", "compile s"):
    table.add_column(column)
  for task, cases in result["rows"].items():
    for name, row in cases.items():
      compiled = f"{row['compile_s']:.1f}" if "compile_s" in row else ""
      over = f"{row['over_plain_ms']:.2f}" if "over_plain_ms" in row else ""
      table.add_row(task, name, f"{row['median_ms']:.2f}", over, compiled)
  Console().print(table)


def _timed(cases: Mapping[str, tuple[Step, Any, jax.Array]], blocks: int) -> dict[str, Any]:
  def training_step(layer: Step) -> Callable[..., Any]:
    loss = lambda raw, x: jnp.sum(jnp.sin(layer(raw, x)))

    def step(carry):
      slopes = jax.grad(loss, argnums=(0, 1))(*carry)
      # Both are used, so that both are computed, and neither moves what it is of.
      return jax.tree.map(lambda w, g: w + 1e-12 * g, carry, slopes)

    return step

  compiled = {
    name: compile_case(training_step(layer), (raw, x)) for name, (layer, raw, x) in cases.items()
  }
  rows = compare(compiled, baseline="plain", blocks=blocks, steps=STEPS, keep_carry=True)
  plain = rows["plain"]["median_ms"]
  keep = ("median_ms", "compile_s")
  return {
    name: {key: row[key] for key in keep} | {"over_plain_ms": row["median_ms"] - plain}
    for name, row in rows.items()
  }


def _normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape) / shape[-2] ** 0.5


def _dense(batch: int, n: int) -> dict[str, tuple[Step, Any, jax.Array]]:
  raw, x = {"kernel": _normal(0, n, n)}, _normal(1, batch, n)

  def of(parametrize: Callable[[Any], Any]) -> tuple[Step, Any, jax.Array]:
    return lambda raw, x: x @ parametrize(raw)["kernel"], raw, x

  return {
    "plain": of(lambda raw: raw),
    "orthogonalize": of(lipjax.orthogonalize),
    "orthogonalize, bjorck": of(lambda raw: lipjax.orthogonalize(raw, method="bjorck")),
    "orthogonal_map, cayley": of(lipjax.orthogonal_map),
    "orthogonal_map, exponential": of(lambda raw: lipjax.orthogonal_map(raw, method="exponential")),
    "almost_orthogonalize": of(lipjax.almost_orthogonalize),
  }


def _residual(batch: int, n: int, hidden: int) -> dict[str, tuple[Step, Any, jax.Array]]:
  raw, x = _normal(0, n, hidden), _normal(1, batch, n)

  def of(kernels: Any) -> tuple[Step, Any, jax.Array]:
    def layer(raw, x):
      inner, outer = kernels(raw)
      return x - jax.nn.relu(x @ inner) @ outer

    return layer, raw, x

  return {
    "plain": of(lambda raw: (raw, raw.T)),
    "sll_kernels": of(lipjax.sll_kernels),
    "cpl_kernels": of(lipjax.cpl_kernels),
  }


def _convolution(batch: int, n: int, channels: int) -> dict[str, tuple[Step, Any, jax.Array]]:
  shape = (3, 3, channels, channels)
  kernel, raw = _normal(0, *shape), _normal(0, 5, channels, channels)
  x = _normal(1, batch, n, n, channels)
  layout = {"": lipjax.Convolution((n, n))}

  def of(parametrize: Callable[[Any], Any], raw: Any) -> tuple[Step, Any, jax.Array]:
    def layer(raw, x):
      dims = ("NHWC", "HWIO", "NHWC")
      return jax.lax.conv_general_dilated(
        x, parametrize(raw), (1, 1), "SAME", dimension_numbers=dims
      )

    return layer, raw, x

  return {
    "plain": of(lambda raw: raw, kernel),
    "almost_orthogonalize": of(lambda raw: lipjax.almost_orthogonalize(raw, layout=layout), kernel),
    "orthogonal_convolution": of(lambda raw: lipjax.orthogonal_convolution(raw, shape), raw),
  }
