"""Makes the README's picture: the figure of ``python -m lipjax demo``, with fewer colours.

Run it from anywhere: ``python docs/figures.py``. It takes as long as the demo.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "_static" / "demo.png"


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "lipjax", "demo", "--out", folder], check=True)
    figure = Image.open(Path(folder) / "demo.png").convert("RGB")
  # 64 colours are enough for lines on white and keep the repository small.
  figure.quantize(64).save(PICTURE, optimize=True)
  print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  main()
