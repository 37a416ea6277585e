"""Make the one example that is a photograph: Chelsea the cat, at the size of CIFAR-10.

The picture is `chelsea.png` of scikit-image's data: CC0 by the photographer, Stefan van der Walt. scikit-image is no
dependency of this project; `pip install scikit-image` brings the picture along.

    python -m examples.photograph                     # writes examples/chelsea.png
    python -m examples.photograph --photo chelsea.png --out DIR
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
FACE = (70, 0, 370, 300)  # left, upper, right, lower: a square around the face


def shrink(photo: Path) -> Image.Image:
    """The face, scaled down with antialiasing: RGB, SIZE x SIZE."""
    with Image.open(photo) as image:
        small = image.convert("RGB").crop(FACE).resize((SIZE, SIZE), Image.Resampling.BOX)
    return Image.fromarray(np.asarray(small))  # pixels only: the photo's colour profile and comments stay behind


def bundled_photo() -> Path:
    """Where an installed scikit-image keeps it; FileNotFoundError says how to get it."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError("scikit-image is not installed: pip install scikit-image, or name --photo chelsea.png")
    return Path(package.origin).parent / "data" / "chelsea.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="scikit-image's chelsea.png (default: of the installed package)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: examples)")
    options = parser.parse_args()
    try:
        photo = options.photo or bundled_photo()
        shrink(photo).save(options.out / "chelsea.png", optimize=True)
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
