"""Honest traffic that repeats itself, as image files: retries, videos, thumbnails, catalogues, health checks.

Photographs are those that come with scikit-learn and matplotlib; a split has its own, so that thresholds can be chosen
on one and judged on the other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FRAME = 160  # pixels a side of a frame of video, as it is sent
VIDEO_SECONDS = 8
SENSOR_NOISE = 3.0  # levels, standard deviation at the size of the frame
SPEEDS = (1, 2, 4, 8)  # of a pan, in pixels of the model's 32 a second
ZOOMS = (0.05, 0.1, 0.2)  # growth a second
CATALOGUE = 300  # products

Pixels = NDArray[np.uint8]


class Traffic(NamedTuple):
    """What one client sends.

    Attributes:
        about: in a few words.
        files: in their order.
        promised: whether the guard promises to leave it alone.
        at_once: images in a request.
    """

    about: str
    files: Callable[[], Iterator[bytes]]
    promised: bool = True
    at_once: int = 1


def png(image: Image.Image | Pixels) -> bytes:
    """A PNG of an image, or of pixels [3,H,W]."""
    return encoded(Image.fromarray(image.transpose(1, 2, 0)) if isinstance(image, np.ndarray) else image, "PNG")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photographs(split: str) -> list[Image.Image]:
    """Of `validation` or `test`, at least 400 pixels a side."""
    if split == "validation":
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "sample_data"
        return [_sample(0), Image.open(folder / "grace_hopper.jpg").convert("RGB")]
    return [_sample(1), _sample(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 427, 427))]


def _sample(number: int) -> Image.Image:
    from sklearn.datasets import load_sample_images  # its pictures come with it

    return Image.fromarray(load_sample_images().images[number])


def traffic(split: str, images: Pixels, seed: int) -> list[Traffic]:
    """All kinds; `images` [N,3,32,32] are those of the split."""
    pictures = photographs(split)
    rows = [
        Traffic("the same bytes 200 times (retries)", lambda: iter([png(images[0])] * 200)),
        Traffic("a health check's image between others, 300 times", lambda: _health(images[:600])),
        Traffic("40 pictures, 30 thumbnails and re-encodings of each", lambda: _thumbnails(images[600:638], pictures)),
        Traffic(f"a catalogue: {CATALOGUE} products on white, 4 colours of each", lambda: _catalogue(images, seed)),
        Traffic(f"all {len(images):,} CIFAR-10 images of the split", lambda: map(png, images), at_once=25),
    ]
    for fps in (10, 25):
        for speed in SPEEDS:
            about = f"video, {fps} fps, pan of {speed} px a second"
            rows.append(Traffic(about, lambda fps=fps, speed=speed: _videos(pictures, fps, seed, speed=speed)))
        for zoom in ZOOMS:
            about = f"video, {fps} fps, zoom of {zoom:.0%} a second"
            rows.append(Traffic(about, lambda fps=fps, zoom=zoom: _videos(pictures, fps, seed, zoom=zoom)))
    rows.append(Traffic("video, 25 fps, held by hand", lambda: _videos(pictures, 25, seed, shake=1.0), False))
    rows.append(Traffic("a camera that does not move, 25 fps", lambda: _videos(pictures, 25, seed), False))
    return rows


def _health(images: Pixels) -> Iterator[bytes]:
    for n in range(300):
        yield png(images[0])
        yield png(images[1 + n])


def _thumbnails(images: Pixels, pictures: list[Image.Image]) -> Iterator[bytes]:
    small = [Image.fromarray(image.transpose(1, 2, 0)).resize((256, 256), Image.Resampling.BICUBIC) for image in images]
    for picture in [*pictures, *small]:
        side = min(picture.size)
        square = picture.crop((0, 0, side, side))
        for size in (32, 48, 64, 96, 128, 200):
            for filtered in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR):
                yield png(square.resize((size, size), filtered))
            thumbnail = square.resize((size, size), Image.Resampling.LANCZOS)
            yield encoded(thumbnail, "JPEG", quality=60)
            yield encoded(thumbnail, "JPEG", quality=90)
            yield encoded(thumbnail, "WEBP", quality=80)


def _catalogue(images: Pixels, seed: int) -> Iterator[bytes]:
    """Cut-outs of images, of any of five outlines, in four colours each, in the middle of a white page."""
    rng = np.random.default_rng(seed)
    for image in images[1000 : 1000 + CATALOGUE]:
        wide, high = rng.integers(90, 150, 2).tolist()
        box = ((200 - wide) // 2, (200 - high) // 2, (200 + wide) // 2, (200 + high) // 2)
        mask = Image.new("L", (200, 200))
        draw = ImageDraw.Draw(mask)
        outline = rng.integers(5)
        if outline == 0:
            draw.ellipse(box, 255)
        elif outline == 1:
            draw.rounded_rectangle(box, 20, 255)
        elif outline == 2:
            draw.polygon([(box[0], box[3]), (100, box[1]), (box[2], box[3])], 255)
        else:
            places = rng.uniform(0, 1, (7, 2)) * (wide, high) + (box[0], box[1])
            centre = places.mean(axis=0)
            order = np.argsort(np.arctan2(*(places - centre).T))
            draw.polygon([tuple(place) for place in places[order].tolist()], 255)
        mask = mask.filter(ImageFilter.GaussianBlur(1))
        product = Image.fromarray(image.transpose(1, 2, 0)).resize((200, 200), Image.Resampling.BICUBIC)
        hue, saturation, value = product.convert("HSV").split()
        for turn in (0, 64, 128, 192):
            turned = hue.point([(level + turn) % 256 for level in range(256)])
            page = Image.new("RGB", (200, 200), "white")
            page.paste(Image.merge("HSV", (turned, saturation, value)).convert("RGB"), mask=mask)
            yield encoded(page, "JPEG", quality=90)


def _videos(
    pictures: list[Image.Image], fps: int, seed: int, speed: float = 0.0, zoom: float = 0.0, shake: float = 0.0
) -> Iterator[bytes]:
    """Each picture seen by a camera: panned, zoomed in on, or shaken by so many pixels of 32, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    for picture in pictures:
        width, height = picture.size
        side = min(width, height) * 0.6
        at = np.zeros(2)
        for n in range(fps * VIDEO_SECONDS):
            seconds = n / fps
            size = side / (1 + zoom) ** seconds
            at = 0.9 * at + rng.normal(0, shake * side / 32 / 2, 2)
            room = width - size
            along = (speed * side / 32 * seconds) % (2 * room)  # there and back again
            left = min(along, 2 * room - along) if speed else room / 2
            left, top = np.clip([left + at[0], (height - size) / 2 + at[1]], 0, [room, height - size]).tolist()
            seen = picture.resize((FRAME, FRAME), Image.Resampling.BILINEAR, box=(left, top, left + size, top + size))
            noisy = np.asarray(seen) + rng.normal(0, SENSOR_NOISE, (FRAME, FRAME, 3))
            frame = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
            yield encoded(frame, "JPEG", quality=90)
