"""Benign corruptions of natural images, five strengths each: `CORRUPTIONS`.

Thresholds may be calibrated on the kinds of the group "training", networks may be trained on them; kinds of the group
"judging" are only ever judged on. Many kinds and strengths are those of CIFAR-10-C (Hendrycks and Dietterich, arXiv
1903.12261); the rest is what programs do to pictures every day. Frost, snow and fog are drawn, not photographed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage

Pixels = NDArray[np.uint8]  # [N,3,H,W]
Floats = NDArray[np.float32]  # the same in [0,1], or what becomes that when clipped
Group = Literal["training", "judging"]
STRENGTHS = (1, 2, 3, 4, 5)
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1)  # Rec. 601, as JPEG and Pillow have it


@dataclass(frozen=True)
class Corruption:
    """One kind: `title` for people, `change` from (images, strength 1 to 5, random numbers) to images."""

    name: str
    title: str
    group: Group
    change: Callable[[Pixels, int, Generator], Pixels]

    def apply(self, images: Pixels, strength: int, seed: int = 0) -> Pixels:
        """uint8 [N,3,H,W] -> the same shape, a new array; the same images, strength and seed give the same result.

        Raises:
            ValueError: no such strength, or no such images.
        """
        if strength not in STRENGTHS:
            raise ValueError(f"strengths are {STRENGTHS[0]} to {STRENGTHS[-1]}, not {strength}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"corruptions change uint8 images [N,3,H,W], not {images.dtype} {list(images.shape)}")
        if not len(images):
            return images.copy()
        return self.change(images, strength, np.random.default_rng([seed, strength, *self.name.encode()]))


CORRUPTIONS: dict[str, Corruption] = {}


def corruption(
    name: str, title: str, group: Group
) -> Callable[[Callable[[Pixels, int, Generator], Pixels]], Callable[[Pixels, int, Generator], Pixels]]:
    """Enter a function of images, strength and random numbers into the table."""

    def enter(change: Callable[[Pixels, int, Generator], Pixels]) -> Callable[[Pixels, int, Generator], Pixels]:
        CORRUPTIONS[name] = Corruption(name, title, group, change)
        return change

    return enter


def to_unit(images: Pixels) -> Floats:
    return images.astype(np.float32) / np.float32(255)


def to_pixels(x: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return pixels


def through_pillow(images: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Each image changed on its own as an RGB Pillow image."""
    arrays = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    changed = np.stack([np.asarray(change(Image.fromarray(array)).convert("RGB")) for array in arrays])
    return np.ascontiguousarray(changed.transpose(0, 3, 1, 2))


def encoded(image: Image.Image, form: str, **options: int) -> Image.Image:
    """Written to a file and read back."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(file)


def per_image(rng: Generator, images: Pixels, low: float, high: float) -> Floats:
    """A uniform number an image, [N,1,1,1]."""
    return rng.uniform(low, high, (len(images), 1, 1, 1)).astype(np.float32)


def grey(x: Floats) -> Floats:
    """Luminance, [N,1,H,W]."""
    out: Floats = (x * LUMINANCE).sum(1, keepdims=True, dtype=np.float32)
    return out


# ------------------------------------------------------------------------------------------------- noise
def noisy(images: Pixels, noise: NDArray[np.floating]) -> Pixels:
    """`noise` in grey levels."""
    pixels: Pixels = np.rint(np.clip(images + noise, 0, 255)).astype(np.uint8)
    return pixels


@corruption("gaussian_noise", "Gaussian noise of sigma 1, 2, 4, 8, 12 grey levels", "training")
def gaussian_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return noisy(images, (1, 2, 4, 8, 12)[strength - 1] * rng.standard_normal(images.shape, np.float32))


@corruption("sign_noise", "plus or minus 1, 2, 4, 8, 12 grey levels at random", "training")
def sign_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return noisy(images, (1, 2, 4, 8, 12)[strength - 1] * (2.0 * rng.integers(0, 2, images.shape) - 1))


@corruption("uniform_noise", "uniform noise within 1, 2, 4, 8, 12 grey levels", "training")
def uniform_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    reach = (1, 2, 4, 8, 12)[strength - 1]
    return noisy(images, rng.uniform(-reach, reach, images.shape))


@corruption("grey_noise", "Gaussian noise of the luminance, sigma 1, 2, 4, 8, 12 grey levels", "training")
def grey_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    n, _, height, width = images.shape
    return noisy(images, (1, 2, 4, 8, 12)[strength - 1] * rng.standard_normal((n, 1, height, width), np.float32))


@corruption("shot_noise", "shot noise of a sensor that counts up to 20,000 to 250 photons", "training")
def shot_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    photons = (20_000, 6_000, 2_000, 700, 250)[strength - 1]
    return to_pixels(rng.poisson(to_unit(images) * photons) / photons)


@corruption("speckle_noise", "noise in proportion to the light, sigma 1 to 15 %", "judging")
def speckle_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return noisy(images, (0.01, 0.02, 0.04, 0.08, 0.15)[strength - 1] * images * rng.standard_normal(images.shape))


@corruption("impulse_noise", "0.2 to 6 % of the values black or white", "judging")
def impulse_noise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    hit = rng.random(images.shape) < (0.002, 0.005, 0.01, 0.03, 0.06)[strength - 1]
    return np.where(hit, (255 * rng.integers(0, 2, images.shape)).astype(np.uint8), images)


# ------------------------------------------------------------------------------------------------- sharpness
@corruption("gaussian_blur", "Gaussian blur of sigma 0.4 to 1.5 pixels", "training")
def gaussian_blur(images: Pixels, strength: int, rng: Generator) -> Pixels:
    sigma = (0.4, 0.55, 0.7, 1.0, 1.5)[strength - 1]
    return to_pixels(ndimage.gaussian_filter(to_unit(images), (0, 0, sigma, sigma)))


@corruption("sharpen", "unsharp masking of radius 1, 40 to 200 %", "training")
def sharpen(images: Pixels, strength: int, rng: Generator) -> Pixels:
    sharper = ImageFilter.UnsharpMask(1, (40, 70, 100, 150, 200)[strength - 1], 0)
    return through_pillow(images, lambda image: image.filter(sharper))


@corruption("median", "median filter: a row of 3, a cross, 3 x 3, 3 x 3 twice, 5 x 5", "training")
def median(images: Pixels, strength: int, rng: Generator) -> Pixels:
    row, cross = np.array([[1, 1, 1]]), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    shape = (row, cross, np.ones((3, 3)), np.ones((3, 3)), np.ones((5, 5)))[strength - 1][None, None]
    for _ in range(1 + (strength == 4)):
        images = ndimage.median_filter(images, footprint=shape)
    return images


def convolved(images: Pixels, kernel: NDArray[np.floating]) -> Pixels:
    """By a kernel [k,k] of sum 1, edges mirrored."""
    return to_pixels(ndimage.convolve(to_unit(images), kernel.astype(np.float32)[None, None], mode="reflect"))


@corruption("defocus_blur", "defocus: a disc of radius 0.7 to 2 pixels", "judging")
def defocus_blur(images: Pixels, strength: int, rng: Generator) -> Pixels:
    radius, fine = (0.7, 0.9, 1.1, 1.5, 2.0)[strength - 1], 9  # each pixel of the disc drawn as 9 x 9
    side = 2 * int(np.ceil(radius)) + 1
    y, x = (np.indices((side * fine, side * fine)) + 0.5) / fine - side / 2
    disc = (np.hypot(x, y) <= radius).reshape(side, fine, side, fine).mean((1, 3))
    return convolved(images, disc / disc.sum())


@corruption("motion_blur", "motion of 2 to 6 pixels, one direction a batch of 8 images", "judging")
def motion_blur(images: Pixels, strength: int, rng: Generator) -> Pixels:
    length = (2, 2.5, 3, 4, 6)[strength - 1]
    out = np.empty_like(images)
    for start in range(0, len(images), 8):
        angle = rng.uniform(0, np.pi)
        steps = np.linspace(-length / 2, length / 2, 33)
        kernel = np.zeros((9, 9))
        for step in steps:  # bilinear: each point of the path is shared by four pixels
            y, x = 4 + step * np.sin(angle), 4 + step * np.cos(angle)
            top, left = int(np.floor(y)), int(np.floor(x))
            kernel[top : top + 2, left : left + 2] += np.outer([top + 1 - y, y - top], [left + 1 - x, x - left])
        out[start : start + 8] = convolved(images[start : start + 8], kernel / kernel.sum())
    return out


@corruption("zoom_blur", "zoom while exposing, up to 6 to 26 %", "judging")
def zoom_blur(images: Pixels, strength: int, rng: Generator) -> Pixels:
    factors = np.linspace(1, (1.06, 1.1, 1.14, 1.2, 1.26)[strength - 1], 6)

    def zoomed(image: Image.Image) -> Image.Image:
        layers = []
        for factor in factors:
            x, y = image.width * (1 - 1 / factor) / 2, image.height * (1 - 1 / factor) / 2
            box = (x, y, image.width - x, image.height - y)
            layers.append(np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box), np.float32))
        return Image.fromarray(np.rint(np.mean(layers, 0)).astype(np.uint8))

    return through_pillow(images, zoomed)


@corruption("elastic", "elastic transform, displacements of 0.2 to 1.2 pixels", "judging")
def elastic(images: Pixels, strength: int, rng: Generator) -> Pixels:
    size, (n, _, height, width) = (0.2, 0.35, 0.5, 0.8, 1.2)[strength - 1], images.shape
    shift = ndimage.gaussian_filter(rng.standard_normal((n, 2, height, width)), (0, 0, 4, 4), mode="wrap")
    shift *= size / shift.std((2, 3), keepdims=True)
    at = np.indices((height, width)) + shift  # [N,2,H,W]
    planes = [
        ndimage.map_coordinates(plane, place, order=1, mode="reflect")
        for image, place in zip(to_unit(images), at, strict=True)
        for plane in image
    ]
    return to_pixels(np.stack(planes).reshape(images.shape))


# ------------------------------------------------------------------------------------------------- light and colour
@corruption(
    "contrast", "contrast x0.8, x0.6, x1.25, x1.5, x2 about the middle, and light up to 6 % either way", "training"
)
def contrast(images: Pixels, strength: int, rng: Generator) -> Pixels:
    factor = (0.8, 0.6, 1.25, 1.5, 2.0)[strength - 1]
    return to_pixels((to_unit(images) - 0.5) * factor + 0.5 + per_image(rng, images, -0.06, 0.06))


@corruption("gamma", "gamma 0.85, 1.2, 0.7, 1.5, 2", "training")
def gamma(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return to_pixels(to_unit(images) ** (0.85, 1.2, 0.7, 1.5, 2.0)[strength - 1])


@corruption("saturation", "colours x0.7, x1.3, x0.4, x1.6, x2", "training")
def saturation(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x = to_unit(images)
    return to_pixels(grey(x) + (x - grey(x)) * (0.7, 1.3, 0.4, 1.6, 2.0)[strength - 1])


@corruption("autocontrast", "levels stretched to the whole range, by 20 to 100 % and channel by channel", "training")
def autocontrast(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x = to_unit(images)
    low, high = x.min((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    return to_pixels(x + strength / 5 * ((x - low) / np.maximum(high - low, 1 / 255) - x))


@corruption("brightness", "light x1.1, x0.8, x1.3, x1.5, x1.8", "judging")
def brightness(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return to_pixels(to_unit(images) * (1.1, 0.8, 1.3, 1.5, 1.8)[strength - 1])


@corruption("equalise", "histograms equalised, mixed in by 20 to 100 %", "judging")
def equalise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return through_pillow(images, lambda image: Image.blend(image, ImageOps.equalize(image), strength / 5))


@corruption("grey", "colours taken away by 30, 60, 80, 95, 100 %", "judging")
def grey_scale(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x, share = to_unit(images), (0.3, 0.6, 0.8, 0.95, 1.0)[strength - 1]
    return to_pixels(x + share * (grey(x) - x))


SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)


@corruption("sepia", "sepia, mixed in by 20 to 100 %", "judging")
def sepia(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x = to_unit(images)
    return to_pixels(x + strength / 5 * (np.einsum("ij,njhw->nihw", SEPIA, x) - x))


@corruption("white_balance", "warmer or colder light: red and blue apart by 5 to 40 %", "judging")
def white_balance(images: Pixels, strength: int, rng: Generator) -> Pixels:
    warm = (0.025, 0.05, 0.08, 0.13, 0.2)[strength - 1] * np.sign(per_image(rng, images, -1, 1))
    gains = np.concatenate([1 + warm, np.ones_like(warm), 1 - warm], 1)
    return to_pixels(to_unit(images) * gains)


@corruption("vignette", "corners darker by 10 to 60 %", "judging")
def vignette(images: Pixels, strength: int, rng: Generator) -> Pixels:
    height, width = images.shape[2:]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    return to_pixels(to_unit(images) * (1 - (0.1, 0.2, 0.3, 0.45, 0.6)[strength - 1] * (x**2 + y**2) / 2))


# ------------------------------------------------------------------------------------------------- few colours
@corruption("posterise", "each channel rounded to 64, 48, 32, 16, 8 levels", "training")
def posterise(images: Pixels, strength: int, rng: Generator) -> Pixels:
    steps = (64, 48, 32, 16, 8)[strength - 1] - 1
    return to_pixels(np.rint(to_unit(images) * steps) / steps)


@corruption("dithered", "each channel dithered at random to 64, 48, 32, 16, 8 levels", "training")
def dithered(images: Pixels, strength: int, rng: Generator) -> Pixels:
    steps = (64, 48, 32, 16, 8)[strength - 1] - 1
    return to_pixels(np.rint(to_unit(images) * steps + rng.uniform(-0.5, 0.5, images.shape)) / steps)


def palette_of(images: Pixels, strength: int, dither: Image.Dither) -> Pixels:
    colours = (256, 192, 128, 64, 32)[strength - 1]

    def reduced(image: Image.Image) -> Image.Image:
        few = image.quantize(colours, Image.Quantize.MEDIANCUT)  # which takes no notice of `dither`
        return few if dither == Image.Dither.NONE else image.quantize(palette=few, dither=dither)

    return through_pillow(images, reduced)


@corruption("palette", "a palette of 256, 192, 128, 64, 32 colours", "judging")
def palette(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return palette_of(images, strength, Image.Dither.NONE)


@corruption("palette_dithered", "a palette of 256 to 32 colours, Floyd and Steinberg's dithering", "judging")
def palette_dithered(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return palette_of(images, strength, Image.Dither.FLOYDSTEINBERG)


# ------------------------------------------------------------------------------------------------- files and scaling
@corruption("jpeg", "JPEG of quality 95, 90, 75, 50, 25", "training")
def jpeg(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return through_pillow(images, lambda i: encoded(i, "JPEG", quality=(95, 90, 75, 50, 25)[strength - 1]))


@corruption("webp", "WebP of quality 95, 90, 80, 50, 25", "judging")
def webp(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return through_pillow(images, lambda i: encoded(i, "WEBP", quality=(95, 90, 80, 50, 25)[strength - 1]))


@corruption("chroma_subsampling", "colour at half resolution, mixed in by 20 to 100 %", "judging")
def chroma_subsampling(images: Pixels, strength: int, rng: Generator) -> Pixels:
    def subsampled(image: Image.Image) -> Image.Image:
        light, *colours = image.convert("YCbCr").split()
        half = (max(1, image.width // 2), max(1, image.height // 2))
        low = [c.resize(half, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR) for c in colours]
        return Image.blend(image, Image.merge("YCbCr", (light, *low)).convert("RGB"), strength / 5)

    return through_pillow(images, subsampled)


@corruption("pixelate", "blocks of 2 x 2, mixed in by 25, 50, 75, 100 %, then of 3 x 3", "training")
def pixelate(images: Pixels, strength: int, rng: Generator) -> Pixels:
    block = 3 if strength == 5 else 2

    def coarse(image: Image.Image) -> Image.Image:
        small = image.resize((-(-image.width // block), -(-image.height // block)), Image.Resampling.BOX)
        return Image.blend(image, small.resize(image.size, Image.Resampling.NEAREST), min(1.0, strength / 4))

    return through_pillow(images, coarse)


def scaled(images: Pixels, strength: int, up: Image.Resampling, down: Image.Resampling) -> Pixels:
    """To x1.25, x1.5, x2, x3, x4 the size by `up`, and back by `down`."""
    factor = (1.25, 1.5, 2, 3, 4)[strength - 1]

    def there_and_back(image: Image.Image) -> Image.Image:
        large = image.resize((round(image.width * factor), round(image.height * factor)), up)
        return large.resize(image.size, down)

    return through_pillow(images, there_and_back)


@corruption("scaled_nearest", "x0.9 to x0.5 the size and back by the nearest neighbour", "judging")
def scaled_nearest(images: Pixels, strength: int, rng: Generator) -> Pixels:
    factor = (0.9, 0.8, 0.7, 0.6, 0.5)[strength - 1]

    def there_and_back(image: Image.Image) -> Image.Image:
        small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)
        return small.resize(image.size, Image.Resampling.NEAREST)

    return through_pillow(images, there_and_back)


@corruption("scaled_bilinear", "x1.25 to x4 the size, bilinear, and back as the server scales", "judging")
def scaled_bilinear(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return scaled(images, strength, Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)


@corruption("scaled_bicubic", "x1.25 to x4 the size, bicubic, and back as the server scales", "judging")
def scaled_bicubic(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return scaled(images, strength, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


@corruption("scaled_lanczos", "x1.25 to x4 the size and back, both by Lanczos", "judging")
def scaled_lanczos(images: Pixels, strength: int, rng: Generator) -> Pixels:
    return scaled(images, strength, Image.Resampling.LANCZOS, Image.Resampling.LANCZOS)


# ------------------------------------------------------------------------------------------------- weather and overlays
def clouds(rng: Generator, images: Pixels, coarse: float = 0.35) -> Floats:
    """Smooth noise over several octaves, [N,1,H,W] in [0,1]."""
    n, _, height, width = images.shape
    total = np.zeros((n, 1, height, width))
    for octave in range(4):
        sigma = max(height, width) / 4 / 2**octave
        noise = ndimage.gaussian_filter(rng.standard_normal((n, 1, height, width)), (0, 0, sigma, sigma), mode="wrap")
        total += noise / noise.std((2, 3), keepdims=True) * coarse**octave
    low, high = total.min((2, 3), keepdims=True), total.max((2, 3), keepdims=True)
    out: Floats = ((total - low) / (high - low)).astype(np.float32)
    return out


@corruption("fog", "fog of 20 to 75 %", "judging")
def fog(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x, thick = to_unit(images), (0.2, 0.35, 0.5, 0.65, 0.75)[strength - 1]
    veil = thick * (0.5 + 0.5 * clouds(rng, images))
    return to_pixels(x * (1 - veil) + 0.85 * veil)


@corruption("frost", "frost drawn over the picture, 15 to 60 % of the light", "judging")
def frost(images: Pixels, strength: int, rng: Generator) -> Pixels:
    x, thick = to_unit(images), (0.15, 0.25, 0.35, 0.45, 0.6)[strength - 1]
    ridges = 1 - np.abs(2 * clouds(rng, images, coarse=0.8) - 1)
    ice = np.array([0.85, 0.93, 1.0], np.float32).reshape(1, 3, 1, 1) * ridges**2
    return to_pixels(x * (1 - thick / 2) + thick * ice)


@corruption("snow", "slanting flakes, 1 to 10 % of the pixels, and paler light", "judging")
def snow(images: Pixels, strength: int, rng: Generator) -> Pixels:
    share = (0.01, 0.02, 0.035, 0.06, 0.1)[strength - 1]
    n, _, height, width = images.shape
    flakes = (rng.random((n, 1, height, width)) < share).astype(np.float32)
    path = np.eye(3, dtype=np.float32)[None, None] / 2
    flakes = np.clip(ndimage.convolve(flakes, path, mode="wrap"), 0, 1)
    x = to_unit(images)
    x = x + 2 * share * (np.maximum(x, grey(x) * 1.3 + 0.3) - x)
    return to_pixels(x + flakes * (1 - x))


@corruption("text", "a line of text, in letters of 6 to 14 pixels", "judging")
def text(images: Pixels, strength: int, rng: Generator) -> Pixels:
    font = ImageFont.load_default((6, 8, 10, 12, 14)[strength - 1])

    def written(image: Image.Image) -> Image.Image:
        place = (int(rng.integers(0, image.width // 3)), int(rng.integers(0, image.height * 2 // 3)))
        words = ("Photo", "2024-07-01", "(c) A. B.", "draft", "sold")[rng.integers(5)]
        colour = ((255, 255, 255), (0, 0, 0), (255, 220, 0))[rng.integers(3)]
        ImageDraw.Draw(image).text(place, words, colour, font)
        return image

    return through_pillow(images, written)


@corruption("border", "a plain border of 1 to 5 pixels", "judging")
def border(images: Pixels, strength: int, rng: Generator) -> Pixels:
    out = (255 * rng.integers(0, 2, (len(images), 1, 1, 1))).astype(np.uint8) * np.ones_like(images)
    out[:, :, strength:-strength, strength:-strength] = images[:, :, strength:-strength, strength:-strength]
    return out


@corruption(
    "screenshot", "shown at x1.25 to x4 on a screen with a window's bar above, and scaled down again", "judging"
)
def screenshot(images: Pixels, strength: int, rng: Generator) -> Pixels:
    factor = (1.25, 1.5, 2, 3, 4)[strength - 1]

    def shot(image: Image.Image) -> Image.Image:
        shown = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        bar = max(2, shown.height // 10)
        screen = Image.new("RGB", (shown.width, shown.height + bar), (222, 225, 230))
        screen.paste(shown, (0, bar))
        ImageDraw.Draw(screen).ellipse((1, 1, bar - 1, bar - 1), (255, 95, 87))
        return screen.resize(image.size, Image.Resampling.BILINEAR)

    return through_pillow(images, shot)
