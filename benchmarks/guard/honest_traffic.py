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
NIGHT_NOISE = 8.0
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
        every: seconds between two images.
    """

    about: str
    files: Callable[[], Iterator[bytes]]
    promised: bool = True
    every: float = 1.0


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
        Traffic(
            "retries with backoff: 40 pictures, each up to 5 times, between others", lambda: _retries(images, seed)
        ),
        Traffic("a health check's image between others, 300 times", lambda: _health(images[:600])),
        Traffic("a gallery of 300 pictures, paged through twice", lambda: _gallery(images[:300])),
        Traffic("one picture cropped by hand 40 times", lambda: _crops(pictures[0], seed)),
        Traffic("40 pictures, 30 thumbnails and re-encodings of each", lambda: _thumbnails(images[600:638], pictures)),
        Traffic(f"a catalogue: {CATALOGUE} products on white, 4 colours of each", lambda: _catalogue(images, seed)),
        Traffic("50 people behind one address, 30 pictures each, one of all", lambda: _office(images, pictures[0], 50)),
        Traffic("100 people behind one address, the same", lambda: _office(images, pictures[0], 100), False),
        Traffic(f"all {len(images):,} CIFAR-10 images of the split", lambda: map(png, images), every=0.1),
    ]
    for fps in (10, 25):
        for speed in SPEEDS:
            about = f"video, {fps} fps, pan of {speed} px a second"
            rows.append(
                Traffic(about, lambda fps=fps, speed=speed: _videos(pictures, fps, seed, speed=speed), True, 1 / fps)
            )
        for zoom in ZOOMS:
            about = f"video, {fps} fps, zoom of {zoom:.0%} a second"
            rows.append(
                Traffic(about, lambda fps=fps, zoom=zoom: _videos(pictures, fps, seed, zoom=zoom), True, 1 / fps)
            )
    rows.append(Traffic("video, 25 fps, held by hand", lambda: _videos(pictures, 25, seed, shake=1.0), False, 0.04))
    still = "a camera that does not move, 25 fps"
    for about, promised, more in (
        (still, True, {}),
        (f"{still}, daylight that grows by 3 levels a second", True, {"light": 3.0}),
        (f"{still}, a lamp that blinks", True, {"blink": 6.0}),
        (f"{still}, noise of {NIGHT_NOISE:g} levels (night)", False, {"noise": NIGHT_NOISE}),
    ):
        rows.append(Traffic(about, lambda more=more: _videos(pictures, 25, seed, **more), promised, 0.04))
    return rows


def _retries(images: Pixels, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for n in range(40):
        for _ in range(int(rng.integers(1, 6))):
            yield png(images[n])
            yield png(images[40 + int(rng.integers(len(images) - 40))])


def _gallery(images: Pixels) -> Iterator[bytes]:
    for side in (64, 96):  # thumbnails, then larger ones
        for image in images:
            picture = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BICUBIC)
            yield encoded(picture, "JPEG", quality=85)


def _crops(picture: Image.Image, seed: int) -> Iterator[bytes]:
    """Each a little off the last one, as somebody drags a frame."""
    rng = np.random.default_rng(seed)
    side = min(picture.size) * 0.7
    at = np.array([0.1, 0.1]) * picture.size
    for _ in range(40):
        at = np.clip(at + rng.normal(0, 0.02 * side, 2), 0, np.array(picture.size) - side)
        left, top = at.tolist()
        window = picture.resize((200, 200), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        yield encoded(window, "JPEG", quality=90)


def _office(images: Pixels, picture: Image.Image, people: int) -> Iterator[bytes]:
    """Everybody sends pictures of their own, and the one that goes round, each in a size and quality of their own."""
    side = min(picture.size)
    square = picture.crop((0, 0, side, side))
    for person in range(people):
        for n in range(29):
            yield png(images[(person * 29 + n) % len(images)])
        size = 100 + 3 * person
        yield encoded(square.resize((size, size), Image.Resampling.LANCZOS), "JPEG", quality=70 + person % 25)


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
    pictures: list[Image.Image],
    fps: int,
    seed: int,
    speed: float = 0.0,
    zoom: float = 0.0,
    shake: float = 0.0,
    noise: float = SENSOR_NOISE,
    light: float = 0.0,
    blink: float = 0.0,
) -> Iterator[bytes]:
    """Each picture seen by a camera: panned, zoomed in on, or shaken by so many pixels of 32, with a sensor's noise.

    `light` is added each second, `blink` in every other second, both in levels.
    """
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
            lamp = light * seconds + blink * (int(seconds) % 2)
            noisy = np.asarray(seen) + lamp + rng.normal(0, noise, (FRAME, FRAME, 3))
            frame = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
            yield encoded(frame, "JPEG", quality=90)
