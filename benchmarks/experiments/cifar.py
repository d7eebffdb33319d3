"""CIFAR-10 from its official binary layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
ROWS = 10_000  # In each file: one byte of label, then 3,072 of pixels.
ROW_BYTES = 1 + 3 * 32 * 32


def load(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Training images and labels, then test images and labels.

  Args:
    path: the folder with ``data_batch_1.bin`` … ``data_batch_5.bin`` and
      ``test_batch.bin``, or the one that holds it as ``cifar-10-batches-bin``.

  Returns:
    Images as uint8 (n, 32, 32, 3), labels as int32 (n,): 50,000 and 10,000.

  Raises:
    ValueError: a file that is missing, of the wrong size, or with a label above 9.
  """
  folder = Path(path)
  if (folder / "cifar-10-batches-bin").is_dir():
    folder = folder / "cifar-10-batches-bin"
  parts = [_read(folder / name) for name in TRAIN_FILES]
  images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  return images, labels, *_read(folder / TEST_FILE)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
  if not file.is_file():
    msg = (
      f"There is no {file}; expected the binary version of CIFAR-10:"
      f" {', '.join(TRAIN_FILES)} and {TEST_FILE}."
    )
    raise ValueError(msg)
  size = file.stat().st_size
  if size != ROWS * ROW_BYTES:
    msg = f"{file} has {size} bytes; expected {ROWS * ROW_BYTES}: {ROWS} rows of {ROW_BYTES}."
    raise ValueError(msg)
  rows = np.fromfile(file, np.uint8).reshape(ROWS, ROW_BYTES)
  labels = rows[:, 0].astype(np.int32)
  if labels.max() > 9:
    msg = f"{file} has a label {labels.max()}; expected 0 to 9. Is it CIFAR-10's binary version?"
    raise ValueError(msg)
  images = rows[:, 1:].reshape(ROWS, 3, 32, 32).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images), labels
