"""Twelve natural images of different kinds, as people send them.

Drawings, photographs, lossy, scaled, few colours, text; nobody attacked any of them. The photographs are of
scikit-image's data (astronaut: NASA, public domain; coffee, rocket, camera, chelsea: CC0); scikit-image is no
dependency, see `examples.photograph`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..harness.report import ROOT

MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
TEXT = """Dear all,
the meeting is moved
to Thursday, 14:30,
in the large room.
Please bring the list
of open questions.
"""


class NaturalImage(NamedTuple):
    """A file, and what it is in a few words."""

    kind: str
    content: bytes
    media: str


def natural_images(photographs: Path) -> list[NaturalImage]:
    """The twelve; `photographs` is the folder of scikit-image's data. Deterministic for one version of Pillow."""

    def example(name: str) -> Image.Image:
        return Image.open(ROOT / "examples" / f"{name}.png").convert("RGB")

    def photograph(name: str, *box: int) -> Image.Image:
        return Image.open(photographs / name).crop(box or None)

    chelsea = photograph("chelsea.png", 70, 0, 370, 300)
    return [
        _file("drawing, PNG", example("ship")),
        _file("drawing, JPEG at 75", example("truck"), "JPEG", quality=75),
        _file("drawing, 16 colours", example("horse").quantize(16)),
        _file("drawing, sharpened", example("automobile").filter(ImageFilter.UnsharpMask(1, 120, 0))),
        _file("drawing, enlarged", example("airplane").resize((128, 128), Image.Resampling.BICUBIC)),
        _file("photograph, PNG", photograph("astronaut.png", 100, 0, 400, 300)),
        _file("photograph, JPEG at 90", photograph("coffee.png"), "JPEG", quality=90),
        _file("photograph, grey", photograph("camera.png").convert("L")),
        _file("photograph, WebP", photograph("rocket.jpg"), "WEBP", quality=80),
        _file("thumbnail, JPEG at 60", chelsea.resize((96, 96), Image.Resampling.LANCZOS), "JPEG", quality=60),
        _file("thumbnail, noise", _noisy(chelsea.resize((32, 32), Image.Resampling.BOX))),
        _file("text on a screen", _text()),
    ]


def _file(kind: str, image: Image.Image, form: str = "PNG", **options: Any) -> NaturalImage:
    content = io.BytesIO()
    image.save(content, form, **options)
    return NaturalImage(kind, content.getvalue(), MEDIA[form])


def _noisy(image: Image.Image) -> Image.Image:
    """With the noise of a small sensor in little light: standard deviation 10 of 255."""
    pixels = np.asarray(image.convert("RGB"), np.float64) + np.random.default_rng(0).normal(0, 10, (32, 32, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _text() -> Image.Image:
    screen = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(screen).multiline_text((12, 10), TEXT, "black", ImageFont.load_default(26), spacing=8)
    return screen
