"""Prose about Python that ships with it, as numbers of characters, in three parts."""

from __future__ import annotations

import hashlib
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np

#: Of the paragraphs' characters; the rest is for testing.
TRAIN, VALIDATION = 0.8, 0.1


class Text(NamedTuple):
  """Contiguous parts of one text.

  Attributes:
    train: to train on, a number for each character.
    validation: to choose learning rates and strengths on.
    test: to report on.
    characters: that there are, in the order of their numbers.
    digest: of the whole text, which differs between versions of Python.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  characters: str
  digest: str


def load() -> Text:
  """The topics in alphabetical order, every paragraph where it stands first.

  Topics repeat each other: without that much of the test part would be in the training part.
  """
  paragraphs = (x.strip("\n") for topic in sorted(topics) for x in topics[topic].split("\n\n"))
  whole = "\n\n".join(dict.fromkeys(x for x in paragraphs if x))
  characters = "".join(sorted(set(whole)))
  numbers = {character: i for i, character in enumerate(characters)}
  values = np.array([numbers[character] for character in whole], np.int32)
  ends = int(TRAIN * len(values)), int((TRAIN + VALIDATION) * len(values))
  parts = np.split(values, ends)
  return Text(*parts, characters, hashlib.sha256(whole.encode()).hexdigest()[:12])


def windows(part: np.ndarray, n: int, length: int) -> np.ndarray:
  """As many windows of a part at even distances, (n, length)."""
  begins = np.linspace(0, len(part) - length, n).astype(int)
  return part[begins[:, None] + np.arange(length)]
