"""Draw a small data set of four classes of shapes: folders of PNG and JPEG files of many sizes, from a seed.

    python -m examples.shapes pictures                     # pictures/train/CLASS/*.png and *.jpg, pictures/test/...
    python -m examples.shapes honest --train 0 --test 70 --seed 1

What docs/your-own-data.md shows can be tried on it. Nothing of a data set is used.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDES = {"disc": 0, "hexagon": 6, "square": 4, "triangle": 3}
SMALLEST, LARGEST = 24, 120  # pixels a side
SCALE = 4  # drawn larger and scaled down, so that edges are smooth


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """One shape, in any place, size, turn and colour, over a ground that shades, with the noise of a camera."""
    width, height = (int(n) for n in rng.integers(SMALLEST, LARGEST + 1, 2))
    canvas = (SCALE * width, SCALE * height)
    corners = Image.fromarray(rng.integers(30, 226, (2, 2, 3), np.uint8))
    ground = corners.resize(canvas, Image.Resampling.BICUBIC)
    colour = tuple(int(n) for n in rng.integers(0, 256, 3))
    side = min(canvas)
    radius = side * rng.uniform(0.25, 0.42)
    x, y = (centre + rng.uniform(-0.08, 0.08) * side for centre in (canvas[0] / 2, canvas[1] / 2))
    draw = ImageDraw.Draw(ground)
    if sides := SIDES[name]:
        turn = rng.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
        draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill=colour)
    else:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    small = ground.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.4))
    noisy = np.asarray(small, np.float64) + rng.normal(0, 1.5, (height, width, 3))
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def draw(out: Path, part: str, count: int, seed: int) -> None:
    """`count` pictures a class, every third of them a JPEG file."""
    for label, name in enumerate(SIDES):
        folder = out / part / name
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(count):
            made = picture(name, np.random.default_rng([seed, label, n, *part.encode()]))
            if n % 3:
                made.save(folder / f"{n:04}.png")
            else:
                made.save(folder / f"{n:04}.jpg", quality=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m examples.shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the data set, made where it is missing")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="training pictures a class (default: 200)")
    parser.add_argument("--test", type=int, default=100, metavar="N", help="test pictures a class (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    given = parser.parse_args(arguments)
    for part, count in (("train", given.train), ("test", given.test)):
        draw(given.out, part, count, given.seed)


if __name__ == "__main__":
    main()
