"""Draw the example pictures: small scenes in the manner of CIFAR-10, from a seed, with Pillow and numpy alone.

Every picture is painted at 16 times its size, shaded and textured, scaled down with antialiasing and softened, so that
a network that has seen photographs only has something to go by. Nothing of a data set is used.

    python -m examples.draw                           # the committed ones: CHOSEN, as examples/CLASS.png
    python -m examples.draw --out DIR --variants 40   # variants to choose from, as DIR/CLASS-VARIANT.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 32
SCALE = 16
CANVAS = SIZE * SCALE

Colour = tuple[float, float, float]  # RGB, 0 to 255
Point = tuple[float, float]  # x right, y down; 0 to 1 across the picture
Mask = Image.Image  # mode L, CANVAS x CANVAS: where a shape is


# Paint: masks of shapes, and a scene that shapes are painted on.


def points(percents: str) -> list[Point]:
    """An outline as SVG writes it, "x y, x y, ...", in hundredths of the picture."""
    return [(float(x) / 100, float(y) / 100) for x, y in (pair.split() for pair in percents.split(","))]


def polygon(corners: Sequence[Point]) -> Mask:
    mask = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(mask).polygon([(x * CANVAS, y * CANVAS) for x, y in corners], fill=255)
    return mask


def curve(knots: Sequence[Point], per_segment: int = 12) -> Mask:
    """The inside of a closed, smooth (Catmull-Rom) curve through the knots."""
    p = np.asarray(knots, dtype=float)
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    smooth = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(before, p, after, beyond, strict=True)
    ]
    return polygon([(float(x), float(y)) for x, y in np.concatenate(smooth)])


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0) -> Mask:
    a = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = rx * np.cos(a), ry * np.sin(a)
    return polygon([(cx + u * c - v * s, cy + u * s + v * c) for u, v in zip(x, y, strict=True)])


def limb(joints: Sequence[Point], width: float, end_width: float | None = None) -> Mask:
    """A rounded stroke along the joints that goes from one width to another: a leg, a tail, a mast."""
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    end_width = width if end_width is None else end_width
    steps = 40
    xs = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(joints)), [p[0] for p in joints]) * CANVAS
    ys = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(joints)), [p[1] for p in joints]) * CANVAS
    for x, y, r in zip(xs, ys, np.linspace(width, end_width, steps) * CANVAS / 2, strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask


def union(*masks: Mask) -> Mask:
    whole = masks[0]
    for mask in masks[1:]:
        whole = ImageChops.lighter(whole, mask)
    return whole


def noise(rng: np.random.Generator, cells: float, stretch: float = 1.0, octaves: int = 4) -> np.ndarray:
    """Fractal value noise, [CANVAS, CANVAS], mean 0, about -1 to 1; `stretch` > 1 draws it out sideways."""
    total = np.zeros((CANVAS, CANVAS))
    for octave in range(octaves):
        rows = max(2, int(cells * 2**octave))
        columns = max(2, int(cells * 2**octave / stretch))
        grid = Image.fromarray(rng.uniform(-1, 1, (min(rows, CANVAS), min(columns, CANVAS))).astype(np.float32))
        total += np.asarray(grid.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)) / 2**octave
    return total / 1.2


class Scene:
    """A picture in the making, float [CANVAS, CANVAS, 3]; light falls from the upper left."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pixels = np.zeros((CANVAS, CANVAS, 3))

    def backdrop(self, top: Colour, bottom: Colour, *, start: float = 0.0, end: float = 1.0) -> None:
        """A vertical gradient between two heights."""
        first, last = int(start * CANVAS), int(end * CANVAS)
        t = np.linspace(0, 1, last - first)[:, None, None]
        self.pixels[first:last] = np.asarray(top) * (1 - t) + np.asarray(bottom) * t

    def texture(
        self, strength: float, cells: float, *, start: float = 0.0, end: float = 1.0, stretch: float = 1.0
    ) -> None:
        """Noise over everything between two heights."""
        first, last = int(start * CANVAS), int(end * CANVAS)
        self.pixels[first:last] += strength * noise(self.rng, cells, stretch)[first:last, :, None]

    def paint(
        self,
        mask: Mask,
        colour: Colour,
        *,
        round_: float = 0.0,
        grain: float = 0.0,
        cells: float = 12,
        soft: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Fill a shape.

        `round_` shades it as a solid body, `grain` is texture in levels, `soft` blurs its edge, in final pixels.
        """
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(soft * SCALE))
        inside = np.asarray(mask, dtype=float)[:, :, None] / 255 * opacity
        fill = np.broadcast_to(np.asarray(colour, dtype=float), self.pixels.shape).copy()
        if round_:
            depth = np.asarray(mask.filter(ImageFilter.GaussianBlur(1.6 * SCALE)), dtype=float) / 255
            slope_y, slope_x = np.gradient(depth)
            light = np.clip((0.8 * slope_y + 0.45 * slope_x) * CANVAS / 10, -1, 1)
            fill *= (1 + round_ * light)[:, :, None]
        if grain:
            fill += grain * noise(self.rng, cells)[:, :, None]
        self.pixels = self.pixels * (1 - inside) + fill * inside

    def shadow(self, cx: float, cy: float, rx: float, ry: float, strength: float = 0.5) -> None:
        self.paint(ellipse(cx, cy, rx, ry), (20, 20, 22), soft=0.9, opacity=strength)

    def photograph(self, *, blur: float = 0.6) -> Image.Image:
        """Scale down and soften by `blur` final pixels: RGB, SIZE x SIZE.

        No noise is added: the bundled detector takes independent noise, even of 2.5 levels, for an attack.
        """
        big = Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        big = big.filter(ImageFilter.GaussianBlur(blur * SCALE))
        small = np.asarray(big.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)
        return Image.fromarray(np.clip(small.round(), 0, 255).astype(np.uint8))


def pick(rng: np.random.Generator, *choices: Colour, spread: float = 12) -> Colour:
    """One of the colours, a little off."""
    r, g, b = np.asarray(choices[rng.integers(len(choices))]) + rng.uniform(-spread, spread, 3)
    return (r, g, b)


def scaled(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter above."""
    r, g, b = colour
    return (r * factor, g * factor, b * factor)


def paler(colour: Colour, share: float, white: float = 230) -> Colour:
    """Mixed with this share of near white."""
    r, g, b = (c * (1 - share) + white * share for c in colour)
    return (r, g, b)


@dataclass(frozen=True)
class Placement:
    """Where a thing stands: turned and scaled about the centre, shifted, perhaps mirrored (`sign` -1)."""

    scale: float
    dx: float
    dy: float
    sign: int
    turn: float  # radians

    @classmethod
    def anywhere(
        cls,
        rng: np.random.Generator,
        *,
        flip: bool = True,
        size: tuple[float, float] = (0.88, 1.08),
        shift: float = 0.04,
        degrees: tuple[float, float] = (0, 0),
    ) -> Placement:
        scale = rng.uniform(*size)
        dx, dy = rng.uniform(-shift, shift, 2)
        sign = -1 if flip and rng.random() < 0.5 else 1
        return cls(scale, dx, dy, sign, math.radians(rng.uniform(*degrees)))

    def point(self, x: float, y: float) -> Point:
        u, v = x - 0.5, y - 0.5
        u, v = u * math.cos(self.turn) - v * math.sin(self.turn), u * math.sin(self.turn) + v * math.cos(self.turn)
        return (0.5 + self.sign * self.scale * u + self.dx, 0.5 + self.scale * v + self.dy)

    def __call__(self, outline: Sequence[Point]) -> list[Point]:
        return [self.point(x, y) for x, y in outline]

    def disc(self, x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Mask:
        return ellipse(*self.point(x, y), rx * self.scale, ry * self.scale, degrees * self.sign)


# Backgrounds.


def sky(scene: Scene, end: float = 1.0, *, clouds: float = 18) -> None:
    rng = scene.rng
    high = pick(rng, (95, 150, 215), (120, 165, 215), (150, 180, 210), (70, 120, 190))
    scene.backdrop(high, paler(high, 0.55), end=end)
    scene.texture(clouds * rng.uniform(0.3, 1.0), rng.uniform(2, 4), end=end, stretch=2)


def grass(scene: Scene, start: float = 0.0) -> None:
    rng = scene.rng
    far = pick(rng, (120, 145, 75), (95, 130, 60), (150, 155, 95), (110, 120, 70))
    scene.backdrop(far, scaled(far, 0.8), start=start)
    scene.texture(20, 10, start=start, stretch=0.6)
    scene.texture(10, 40, start=start, stretch=0.4)


def foliage(scene: Scene, end: float = 1.0) -> None:
    rng = scene.rng
    leaf = pick(rng, (60, 85, 45), (80, 100, 60), (50, 70, 45), (95, 100, 70))
    scene.backdrop(leaf, scaled(leaf, 0.9), end=end)
    scene.texture(32, 4, end=end)


def room(scene: Scene) -> None:
    """Something indoors, out of focus: a wall, or cloth."""
    rng = scene.rng
    wall = pick(rng, (150, 130, 110), (110, 100, 95), (175, 165, 150), (95, 85, 90), (135, 110, 85))
    scene.backdrop(wall, scaled(wall, rng.uniform(0.6, 0.95)))
    scene.texture(22, 2.5)


def ground(scene: Scene, start: float) -> None:
    rng = scene.rng
    far = pick(rng, (140, 138, 135), (165, 160, 152), (120, 118, 118))
    scene.backdrop(far, scaled(far, 0.8), start=start)
    scene.texture(7, 8, start=start, stretch=4)


# The ten classes.


def airplane(rng: np.random.Generator) -> Scene:
    """An airliner from the side, climbing a little, before the sky."""
    scene = Scene(rng)
    sky(scene)
    at = Placement.anywhere(rng, size=(0.9, 1.1), degrees=(-14, 4))
    body = pick(rng, (225, 228, 232), (205, 210, 218), (235, 232, 226), (170, 178, 188))
    mark = pick(rng, (40, 70, 150), (170, 40, 45), (60, 75, 95), (215, 120, 40))
    grey = scaled(body, 0.66)
    scene.paint(polygon(at(points("50 50, 60 50, 80 36, 75.5 36"))), scaled(body, 0.78))
    scene.paint(polygon(at(points("84 48, 93 48, 97 24, 91 24"))), mark, round_=0.2)
    fuselage = points("3 52, 7 47.5, 15 45.5, 50 45, 80 46, 96 47.5")
    fuselage += points("90 51, 75 54.5, 50 56, 15 56, 6 54.5")
    scene.paint(curve(at(fuselage)), body, round_=0.45)
    scene.paint(limb(at([(0.13, 0.495), (0.82, 0.49)]), 0.012), scaled(body, 0.5), opacity=0.8)
    scene.paint(polygon(at(points("7 48.5, 11 47.5, 11 49, 7 49.8"))), (40, 45, 55))
    scene.paint(polygon(at(points("83 49, 93 48.5, 99 54, 95 54.5"))), grey)
    scene.paint(polygon(at(points("40 53, 55 53, 80 70, 74 71"))), grey, round_=0.2)
    scene.paint(curve(at(points("44 58.5, 52 58, 54 61, 51 63.5, 44 63"))), scaled(grey, 0.75), round_=0.4)
    return scene


def jet(rng: np.random.Generator) -> Scene:
    """An aeroplane from below, high in the sky."""
    scene = Scene(rng)
    sky(scene, clouds=12)
    at = Placement.anywhere(rng, size=(0.85, 1.05), degrees=(-60, 60))
    body = pick(rng, (70, 75, 85), (110, 115, 125), (200, 205, 212), (50, 55, 62))
    wings = points("46 36, 54 36, 93 60, 93 65, 54 55, 46 55, 7 65, 7 60")
    tail = points("48 78, 52 78, 66 88, 66 92, 50 88, 34 92, 34 88")
    scene.paint(polygon(at(wings)), scaled(body, 0.85), round_=0.25)
    scene.paint(polygon(at(tail)), scaled(body, 0.85))
    nose = points("50 6, 54 16, 54.5 50, 52 90, 48 90, 45.5 50, 46 16")
    scene.paint(curve(at(nose)), body, round_=0.5)
    for x in (0.30, 0.70):
        scene.paint(limb(at([(x, 0.48), (x, 0.57)]), 0.05), scaled(body, 0.6))
    return scene


def automobile(rng: np.random.Generator) -> Scene:
    """A saloon car from the side, on a road."""
    scene = Scene(rng)
    horizon = rng.uniform(0.38, 0.52)
    (foliage if rng.random() < 0.5 else sky)(scene, end=horizon + 0.02)
    ground(scene, horizon)
    at = Placement.anywhere(rng, size=(0.95, 1.08), shift=0.02)
    body = pick(rng, (180, 30, 30), (200, 200, 205), (35, 60, 130), (30, 32, 36), (215, 180, 50), (150, 25, 40))
    scene.shadow(*at.point(0.5, 0.76), 0.46, 0.05, 0.75)
    hull = points("4 60, 6 53, 14 49, 26 47.5, 36 36, 47 32.5, 62 32.5, 74 38")
    hull += points("83 47.5, 94 50, 96.5 58, 96 68, 90 71, 50 72, 10 71, 4 68")
    scene.paint(curve(at(hull)), body, round_=0.5)
    glass = (45, 55, 68)
    scene.paint(polygon(at(points("31 47.5, 38.5 37.5, 49 35, 50 47.5"))), glass, grain=14)
    scene.paint(polygon(at(points("52.5 47.5, 52 35, 62 35.2, 70.5 40, 75.5 47.5"))), glass, grain=14)
    scene.paint(polygon(at(points("6 55.5, 95 55.5, 95 57, 6 57"))), scaled(body, 1.3), opacity=0.5)
    scene.paint(polygon(at(points("6 66, 95 66, 94 71, 8 71"))), scaled(body, 0.45))
    scene.paint(at.disc(0.09, 0.565, 0.028, 0.022), (240, 238, 220))
    scene.paint(at.disc(0.945, 0.56, 0.02, 0.024), (190, 40, 30))
    for x in (0.225, 0.775):
        scene.paint(at.disc(x, 0.695, 0.115, 0.115), scaled(body, 0.35))
        scene.paint(at.disc(x, 0.705, 0.098, 0.098), (22, 22, 24))
        scene.paint(at.disc(x, 0.705, 0.058, 0.058), (165, 168, 172), round_=0.3)
        scene.paint(at.disc(x, 0.705, 0.02, 0.02), (60, 60, 62))
    return scene


def car_front(rng: np.random.Generator) -> Scene:
    """A car from the front."""
    scene = Scene(rng)
    horizon = rng.uniform(0.3, 0.45)
    (foliage if rng.random() < 0.6 else sky)(scene, end=horizon + 0.02)
    ground(scene, horizon)
    at = Placement.anywhere(rng, size=(0.95, 1.1), shift=0.02, flip=False)
    body = pick(rng, (185, 30, 30), (205, 205, 210), (40, 70, 150), (40, 42, 46), (220, 190, 60), (230, 120, 40))
    scene.shadow(*at.point(0.5, 0.84), 0.44, 0.05, 0.8)
    for x in (0.19, 0.81):
        scene.paint(limb(at([(x, 0.68), (x, 0.82)]), 0.13 * at.scale), (22, 22, 24))
    cabin = points("22 50, 28 30, 36 25, 64 25, 72 30, 78 50")
    scene.paint(polygon(at(cabin)), body, round_=0.4)
    scene.paint(polygon(at(points("27 47.5, 32 31, 68 31, 73 47.5"))), (50, 62, 76), grain=16)
    hood = points("10 58, 16 50, 30 46.5, 70 46.5, 84 50, 90 58, 91 72, 85 77, 15 77, 9 72")
    scene.paint(curve(at(hood)), body, round_=0.55)
    scene.paint(polygon(at(points("34 58.5, 66 58.5, 63 66, 37 66"))), (28, 28, 30), grain=14, cells=40)
    scene.paint(polygon(at(points("14 70, 86 70, 84 77, 16 77"))), scaled(body, 0.5))
    scene.paint(polygon(at(points("42 70, 58 70, 58 73.5, 42 73.5"))), (225, 225, 220))
    for x in (0.2, 0.8):
        scene.paint(at.disc(x, 0.605, 0.075, 0.045), (240, 240, 228), round_=0.3)
    return scene


def truck(rng: np.random.Generator) -> Scene:
    """A lorry from the side: cab and box."""
    scene = Scene(rng)
    horizon = rng.uniform(0.5, 0.62)
    sky(scene, end=horizon + 0.02)
    if rng.random() < 0.6:
        trees = pick(rng, (70, 90, 60), (85, 95, 75))
        scene.paint(
            polygon([(0, horizon - 0.12), (1, horizon - 0.09), (1, horizon + 0.02), (0, horizon + 0.02)]),
            trees,
            grain=30,
            soft=0.5,
        )
    ground(scene, horizon)
    at = Placement.anywhere(rng, size=(0.95, 1.1), shift=0.02)
    cab = pick(rng, (190, 40, 35), (40, 70, 150), (225, 225, 225), (220, 170, 40), (50, 110, 70))
    box = pick(rng, (228, 228, 226), (205, 208, 212), (235, 230, 215), (190, 60, 50), (60, 95, 160))
    scene.shadow(*at.point(0.5, 0.845), 0.47, 0.045, 0.8)
    scene.paint(polygon(at(points("4 70, 96 70, 96 77, 4 77"))), (45, 45, 48))
    scene.paint(polygon(at(points("33 22, 96.5 22, 96.5 71, 33 71"))), box, round_=0.3, grain=4)
    scene.paint(polygon(at(points("33 22, 96.5 22, 96.5 24.5, 33 24.5"))), scaled(box, 0.8))
    if rng.random() < 0.5:
        stripe = pick(rng, (190, 40, 40), (40, 80, 160), (220, 150, 40))
        scene.paint(polygon(at(points("33 42, 96.5 42, 96.5 52, 33 52"))), stripe)
    scene.paint(polygon(at(points("4 54, 8 50, 12 33, 30 33, 30 75, 4 75"))), cab, round_=0.4)
    scene.paint(polygon(at(points("10 51, 14 37, 26 37, 26 51"))), (55, 68, 82), grain=14)
    scene.paint(polygon(at(points("3 70, 14 70, 14 75.5, 3 75.5"))), (70, 70, 74))
    scene.paint(at.disc(0.065, 0.63, 0.025, 0.025), (245, 240, 215))
    for x in (0.19, 0.70, 0.87):
        scene.paint(at.disc(x, 0.765, 0.085, 0.085), (22, 22, 24))
        scene.paint(at.disc(x, 0.765, 0.042, 0.042), (140, 142, 146), round_=0.3)
    return scene


def ship(rng: np.random.Generator) -> Scene:
    """A cargo ship or ferry on the sea."""
    scene = Scene(rng)
    horizon = rng.uniform(0.48, 0.6)
    sky(scene, end=horizon + 0.02)
    sea = pick(rng, (70, 105, 140), (50, 90, 120), (85, 120, 145), (60, 100, 110))
    scene.backdrop(scaled(sea, 1.15), scaled(sea, 0.75), start=horizon)
    scene.texture(16, 14, start=horizon, stretch=6)
    at = Placement.anywhere(rng, size=(0.92, 1.08), shift=0.02)
    hull = pick(rng, (35, 45, 70), (130, 35, 35), (40, 40, 44), (225, 225, 228), (30, 70, 100))
    white = pick(rng, (232, 232, 230), (215, 218, 222))
    deck = points("57 53, 57 38, 62 38, 62 29, 80 29, 80 36, 86 36, 86 53")
    scene.paint(polygon(at(deck)), white, round_=0.25)
    for y in (0.33, 0.405, 0.465):
        scene.paint(
            polygon(at([(0.63, y), (0.79, y), (0.79, y + 0.022), (0.63, y + 0.022)])), (60, 72, 88), opacity=0.85
        )
    funnel = pick(rng, (190, 50, 40), (40, 60, 110), (220, 160, 50))
    scene.paint(polygon(at(points("70 29, 71 18, 77 18, 78 29"))), funnel, round_=0.4)
    scene.paint(polygon(at(points("71 18, 77 18, 77 20.5, 70.8 20.5"))), (30, 30, 32))
    if rng.random() < 0.6:
        for i in range(4):
            load = pick(rng, (170, 60, 45), (50, 90, 140), (190, 150, 70), (80, 110, 80), (200, 200, 198))
            top = rng.choice((0.41, 0.45))
            scene.paint(
                polygon(
                    at(
                        [
                            (0.20 + 0.085 * i, top),
                            (0.28 + 0.085 * i, top),
                            (0.28 + 0.085 * i, 0.53),
                            (0.20 + 0.085 * i, 0.53),
                        ]
                    )
                ),
                load,
            )
    else:
        scene.paint(polygon(at(points("22 53, 24 45, 57 45, 57 53"))), white, round_=0.25)
    scene.paint(limb(at([(0.15, 0.53), (0.15, 0.27)]), 0.014), (70, 70, 74))
    scene.paint(limb(at([(0.66, 0.29), (0.66, 0.15)]), 0.012), (80, 80, 84))
    scene.paint(polygon(at(points("3 50, 13 52.5, 95 52.5, 92 69, 14 69, 9 63"))), hull, round_=0.35)
    scene.paint(polygon(at(points("10 65.5, 92.5 65.5, 92 69, 14 69"))), (125, 40, 35))
    scene.paint(polygon(at(points("4 51, 95 52.5, 94.8 54, 6 53"))), white, opacity=0.8)
    scene.paint(limb(at([(0.06, 0.695), (0.95, 0.70)]), 0.022), (220, 230, 235), soft=0.4, opacity=0.8)
    scene.paint(polygon(at(points("12 71, 92 71, 85 82, 20 82"))), scaled(hull, 0.8), soft=0.8, opacity=0.35)
    return scene


def sail(rng: np.random.Generator) -> Scene:
    """A sailing boat."""
    scene = Scene(rng)
    horizon = rng.uniform(0.55, 0.68)
    sky(scene, end=horizon + 0.02)
    sea = pick(rng, (60, 100, 145), (45, 85, 120), (80, 120, 150))
    scene.backdrop(scaled(sea, 1.15), scaled(sea, 0.75), start=horizon)
    scene.texture(16, 14, start=horizon, stretch=6)
    at = Placement.anywhere(rng, size=(0.9, 1.05), shift=0.03)
    cloth = pick(rng, (238, 236, 230), (225, 228, 232), (240, 230, 205))
    scene.paint(curve(at(points("53 8, 72 40, 80 64, 66 66, 53 65"))), cloth, round_=0.4)
    scene.paint(curve(at(points("49 14, 36 42, 24 64, 38 65, 49 63"))), scaled(cloth, 0.9), round_=0.4)
    scene.paint(limb(at([(0.51, 0.05), (0.51, 0.73)]), 0.016), (90, 70, 50))
    hull = pick(rng, (235, 235, 235), (40, 60, 110), (120, 50, 40), (60, 60, 65))
    scene.paint(polygon(at(points("14 70, 88 70, 78 80, 24 80"))), hull, round_=0.4)
    scene.paint(limb(at([(0.2, 0.805), (0.84, 0.805)]), 0.02), (220, 230, 235), soft=0.4, opacity=0.8)
    scene.paint(polygon(at(points("30 82, 75 82, 60 98, 45 98"))), cloth, soft=1.0, opacity=0.3)
    return scene


def bird(rng: np.random.Generator) -> Scene:
    """A songbird from the side, on a twig or on the ground."""
    scene = Scene(rng)
    (foliage if rng.random() < 0.6 else sky)(scene)
    at = Placement.anywhere(rng, size=(0.9, 1.12))
    back = pick(rng, (120, 90, 60), (85, 95, 110), (60, 90, 140), (140, 60, 45), (70, 65, 60))
    belly = pick(rng, (225, 205, 170), (215, 210, 200), (205, 120, 60), (230, 200, 90))
    scene.paint(limb(at(points("2 83, 50 80, 98 86")), 0.05, 0.035), (90, 70, 52), round_=0.4, grain=14)
    scene.paint(polygon(at(points("66 52, 74 60, 97 82, 90 86"))), scaled(back, 0.75), round_=0.2)
    body = points("22 36, 30 26, 40 27, 50 36, 66 46, 76 58, 66 70, 48 74, 32 66, 25 52")
    scene.paint(curve(at(body)), back, round_=0.45, grain=12, cells=20)
    scene.paint(curve(at(points("24 47, 34 46, 46 58, 62 66, 50 73.5, 34 67.5"))), belly, round_=0.3, soft=0.3)
    scene.paint(
        curve(at(points("44 42, 62 47, 78 66, 62 62, 48 56"))), scaled(back, 0.72), grain=14, cells=24, round_=0.3
    )
    scene.paint(polygon(at(points("23.5 34.5, 12 38.5, 23.5 40.5"))), (60, 52, 40))
    scene.paint(at.disc(0.305, 0.345, 0.026, 0.026), (12, 12, 12))
    scene.paint(at.disc(0.298, 0.338, 0.008, 0.008), (240, 240, 240))
    for x in (0.46, 0.53):
        scene.paint(limb(at([(x, 0.72), (x - 0.02, 0.82)]), 0.018), (80, 60, 45))
    return scene


def cat(rng: np.random.Generator) -> Scene:
    """The face of a cat."""
    scene = Scene(rng)
    room(scene)
    at = Placement.anywhere(rng, flip=False, size=(0.9, 1.12))
    fur = pick(rng, (150, 125, 100), (120, 112, 105), (185, 130, 75), (90, 85, 82), (205, 190, 170), (60, 56, 54))
    light = paler(fur, 0.55)
    dark = scaled(fur, 0.55)
    scene.paint(
        curve(at(points("20 110, 24 80, 50 70, 76 80, 80 110"))), scaled(fur, 0.9), round_=0.4, grain=14, cells=24
    )
    for sign in (-1, 1):
        ear = [(0.5 + sign * 0.34, 0.08), (0.5 + sign * 0.36, 0.42), (0.5 + sign * 0.06, 0.27)]
        scene.paint(polygon(at(ear)), scaled(fur, 0.9), round_=0.4, grain=10, cells=24)
        inner = [(0.5 + sign * 0.31, 0.16), (0.5 + sign * 0.315, 0.36), (0.5 + sign * 0.14, 0.28)]
        scene.paint(polygon(at(inner)), (185, 135, 125), soft=0.35)
    head = points("50 20, 70 26, 85 46, 84 62, 70 77, 50 83, 30 77, 16 62, 15 46, 30 26")
    scene.paint(curve(at(head)), fur, round_=0.4, grain=16, cells=24)
    if rng.random() < 0.75:
        for x, y0, y1 in ((0.42, 0.22, 0.34), (0.5, 0.2, 0.36), (0.58, 0.22, 0.34)):
            scene.paint(limb(at([(x, y0), (0.5 + (x - 0.5) * 0.7, y1)]), 0.035, 0.015), dark, soft=0.3, opacity=0.8)
        for sign in (-1, 1):
            for y in (0.55, 0.64):
                scene.paint(
                    limb(at([(0.5 + sign * 0.33, y), (0.5 + sign * 0.24, y + 0.02)]), 0.03, 0.012),
                    dark,
                    soft=0.3,
                    opacity=0.7,
                )
    scene.paint(
        curve(at(points("50 54, 60 60, 66 70, 58 79, 50 81, 42 79, 34 70, 40 60"))), light, soft=0.5, round_=0.2
    )
    iris = pick(rng, (190, 175, 70), (120, 165, 90), (205, 150, 50), (130, 170, 190))
    for sign in (-1, 1):
        x = 0.5 + sign * 0.165
        scene.paint(at.disc(x, 0.485, 0.085, 0.066, 10 * sign), (25, 20, 18))
        scene.paint(at.disc(x, 0.485, 0.068, 0.054, 10 * sign), iris, round_=0.3)
        scene.paint(at.disc(x, 0.485, rng.uniform(0.022, 0.04), 0.05), (8, 8, 8))
        scene.paint(at.disc(x - 0.02, 0.465, 0.014, 0.014), (250, 250, 250))
    scene.paint(polygon(at(points("45 60.5, 55 60.5, 50 65.5"))), (190, 115, 110), soft=0.15)
    scene.paint(limb(at(points("50 65, 50 70, 43 73")), 0.015), dark)
    scene.paint(limb(at([(0.5, 0.70), (0.57, 0.73)]), 0.015), dark)
    return scene


def dog(rng: np.random.Generator) -> Scene:
    """The face of a dog with hanging ears."""
    scene = Scene(rng)
    (room if rng.random() < 0.5 else grass)(scene)
    at = Placement.anywhere(rng, flip=False, size=(0.92, 1.12))
    fur = pick(rng, (165, 115, 65), (205, 175, 130), (110, 75, 50), (235, 230, 220), (70, 60, 55))
    ear = scaled(fur, rng.uniform(0.45, 0.75))
    muzzle = paler(fur, 0.5)
    scene.paint(curve(at(points("20 110, 26 85, 50 75, 74 85, 80 110"))), scaled(fur, 0.92), round_=0.4, grain=14)
    head = points("50 12, 68 16, 78 32, 76 52, 68 74, 50 88, 32 74, 24 52, 22 32, 32 16")
    scene.paint(curve(at(head)), fur, round_=0.4, grain=12, cells=20)
    for sign in (-1, 1):
        flap = points("20 15, 32 20, 40 40, 38 62, 30 70, 24 56, 22 36")
        scene.paint(curve(at([(0.5 + sign * x, y) for x, y in flap])), ear, round_=0.5, grain=12, cells=20)
    scene.paint(
        curve(at(points("50 14, 55 30, 55 50, 66 62, 64 78, 50 86, 36 78, 34 62, 45 50, 45 30"))),
        muzzle,
        soft=0.4,
        round_=0.3,
    )
    for sign in (-1, 1):
        scene.paint(at.disc(0.5 + sign * 0.14, 0.42, 0.05, 0.048), (20, 14, 10))
        scene.paint(at.disc(0.49 + sign * 0.14, 0.405, 0.014, 0.014), (245, 245, 245))
    scene.paint(curve(at(points("41 57, 50 55, 59 57, 56 64, 50 67, 44 64"))), (18, 16, 16), round_=0.8)
    scene.paint(limb(at(points("50 66, 50 73, 41 76")), 0.02), (45, 30, 25))
    scene.paint(limb(at([(0.5, 0.73), (0.59, 0.76)]), 0.02), (45, 30, 25))
    if rng.random() < 0.4:
        scene.paint(curve(at(points("45 75, 55 75, 56 84, 50 90, 44 84"))), (215, 100, 105), round_=0.3)
    return scene


def quadruped(scene: Scene, at: Placement, coat: Colour, *, belly: float, legs: float, leg_width: float) -> None:
    """A standing body with four legs, facing left: what deer and horse share. Heights as fractions of the picture."""
    far = scaled(coat, 0.62)
    for x, bend in ((0.37, -0.01), (0.76, 0.03)):
        scene.paint(
            limb(at([(x, belly - 0.08), (x + bend, (belly + legs) / 2), (x, legs)]), leg_width * 1.3, leg_width * 0.8),
            far,
            round_=0.3,
        )
    back = belly - 0.22
    body = [
        (0.28, back + 0.03),
        (0.40, back),
        (0.60, back + 0.02),
        (0.76, back - 0.01),
        (0.85, back + 0.07),
        (0.83, belly - 0.03),
    ]
    body += [(0.70, belly - 0.01), (0.50, belly + 0.01), (0.34, belly), (0.26, belly - 0.08)]
    scene.paint(curve(at(body)), coat, round_=0.45, grain=8)
    for x, bend in ((0.31, -0.02), (0.80, 0.035)):
        scene.paint(
            limb(
                at([(x, belly - 0.07), (x + bend, (belly + legs) / 2), (x - 0.01, legs + 0.02)]),
                leg_width * 1.7,
                leg_width * 0.8,
            ),
            scaled(coat, 0.9),
            round_=0.4,
        )


def deer(rng: np.random.Generator) -> Scene:
    """A deer in a meadow before trees."""
    scene = Scene(rng)
    horizon = rng.uniform(0.35, 0.6)
    foliage(scene, end=horizon + 0.02)
    grass(scene, horizon)
    at = Placement.anywhere(rng, size=(0.9, 1.08))
    coat = pick(rng, (150, 105, 65), (165, 120, 80), (125, 92, 65))
    quadruped(scene, at, coat, belly=0.64, legs=0.93, leg_width=0.036)
    scene.paint(at.disc(0.855, 0.49, 0.028, 0.045), (235, 230, 220), soft=0.3)
    scene.paint(curve(at(points("24 26, 32 30, 38 44, 40 56, 28 56, 25 42"))), coat, round_=0.4, grain=8)
    scene.paint(curve(at(points("7 33, 14 26, 22 21, 30 25, 27 34, 17 36, 9 37.5"))), coat, round_=0.4)
    scene.paint(at.disc(0.075, 0.345, 0.024, 0.022), (35, 28, 25))
    for ear in (points("27 25, 38 19, 30 28"), points("23 23, 21 13, 27 22")):
        scene.paint(polygon(at(ear)), scaled(coat, 0.8))
    scene.paint(at.disc(0.195, 0.265, 0.016, 0.016), (12, 10, 8))
    if rng.random() < 0.7:
        horn = (120, 95, 65)
        for s in (0.0, 0.07):
            scene.paint(limb(at([(0.25 + s, 0.22), (0.30 + s, 0.11), (0.25 + s, 0.01)]), 0.022, 0.012), horn)
            scene.paint(limb(at([(0.285 + s, 0.12), (0.20 + s, 0.06)]), 0.018, 0.01), horn)
    return scene


def horse(rng: np.random.Generator) -> Scene:
    """A horse on a pasture."""
    scene = Scene(rng)
    horizon = rng.uniform(0.4, 0.62)
    (foliage if rng.random() < 0.5 else sky)(scene, end=horizon + 0.02)
    grass(scene, horizon)
    at = Placement.anywhere(rng, size=(0.92, 1.08))
    coat = pick(rng, (120, 70, 40), (95, 55, 35), (60, 42, 32), (165, 115, 75), (215, 205, 195))
    mane = scaled(coat, 0.4)
    scene.paint(limb(at(points("84 40, 92 52, 91 72")), 0.05, 0.03), mane, grain=8)
    quadruped(scene, at, coat, belly=0.63, legs=0.92, leg_width=0.05)
    scene.paint(curve(at(points("20 14, 29 15, 40 34, 44 56, 28 57, 24 36"))), coat, round_=0.4)
    scene.paint(curve(at(points("25 9, 33 17, 45 40, 38 38, 29 22"))), mane, grain=8)
    scene.paint(curve(at(points("5 36, 9 28, 17 16, 26 13, 28 24, 20 31, 12 41, 6 42"))), coat, round_=0.45)
    scene.paint(at.disc(0.075, 0.385, 0.03, 0.03), scaled(coat, 0.55), soft=0.2)
    scene.paint(polygon(at(points("22 15, 23.5 5, 27.5 14"))), scaled(coat, 0.8))
    scene.paint(at.disc(0.18, 0.215, 0.015, 0.015), (10, 8, 8))
    return scene


def frog(rng: np.random.Generator) -> Scene:
    """A frog, sitting, from the front and above."""
    scene = Scene(rng)
    floor = pick(rng, (110, 95, 75), (150, 140, 120), (85, 80, 65), (125, 120, 90), (175, 165, 150))
    scene.backdrop(floor, scaled(floor, 0.8))
    scene.texture(24, 6)
    at = Placement.anywhere(rng, size=(0.92, 1.15))
    skin = pick(rng, (95, 130, 50), (120, 125, 65), (75, 110, 45), (135, 110, 70), (110, 150, 60))
    scene.shadow(*at.point(0.5, 0.82), 0.42, 0.09, 0.6)
    for sign in (-1, 1):
        thigh = [(0.5 + sign * x, y) for x, y in points("20 55, 34 50, 44 60, 42 76, 28 82, 18 74")]
        scene.paint(curve(at(thigh)), scaled(skin, 0.8), round_=0.5, grain=16)
        scene.paint(
            limb(at([(0.5 + sign * 0.36, 0.8), (0.5 + sign * 0.46, 0.86)]), 0.07, 0.04), scaled(skin, 0.75), round_=0.3
        )
    body = points("50 22, 68 26, 78 42, 76 62, 66 78, 50 82, 34 78, 24 62, 22 42, 32 26")
    scene.paint(curve(at(body)), skin, round_=0.5, grain=22, cells=14)
    for _ in range(7):
        x, y = rng.uniform(0.33, 0.67), rng.uniform(0.28, 0.5)
        scene.paint(
            at.disc(x, y, rng.uniform(0.02, 0.045), rng.uniform(0.015, 0.035)),
            scaled(skin, 0.5),
            soft=0.3,
            opacity=0.75,
        )
    throat = paler(skin, 0.5)
    scene.paint(curve(at(points("30 54, 50 58, 70 54, 66 70, 50 79, 34 70"))), throat, round_=0.3, soft=0.4)
    scene.paint(limb(at(points("26 50, 38 55.5, 50 57, 62 55.5, 74 50")), 0.018), scaled(skin, 0.35))
    for sign in (-1, 1):
        x = 0.5 + sign * 0.2
        scene.paint(at.disc(x, 0.29, 0.10, 0.095), skin, round_=0.5)
        scene.paint(
            at.disc(x + sign * 0.015, 0.29, 0.068, 0.066), pick(rng, (200, 165, 60), (190, 140, 50)), round_=0.3
        )
        scene.paint(at.disc(x + sign * 0.015, 0.29, 0.045, 0.036), (10, 10, 10))
        scene.paint(at.disc(x, 0.265, 0.014, 0.014), (245, 245, 245))
        scene.paint(
            limb(at([(0.5 + sign * 0.2, 0.68), (0.5 + sign * 0.24, 0.86)]), 0.09, 0.06), scaled(skin, 0.9), round_=0.4
        )
        scene.paint(limb(at([(0.5 + sign * 0.18, 0.87), (0.5 + sign * 0.31, 0.88)]), 0.04), scaled(skin, 0.8))
    return scene


# Class -> the scenes that show it; variant i of a class is scene i modulo their number.
CLASSES: dict[str, tuple[Callable[[np.random.Generator], Scene], ...]] = {
    "airplane": (airplane, jet),
    "automobile": (automobile, car_front),
    "bird": (bird,),
    "cat": (cat,),
    "deer": (deer,),
    "dog": (dog,),
    "frog": (frog,),
    "horse": (horse,),
    "ship": (ship, sail),
    "truck": (truck,),
}

# The variants that are committed as examples/CLASS.png.
CHOSEN = {
    "airplane": 4,
    "automobile": 0,
    "bird": 3,
    "cat": 4,
    "deer": 1,
    "dog": 1,
    "frog": 2,
    "horse": 12,
    "ship": 4,
    "truck": 3,
}


def draw(label: str, variant: int) -> Image.Image:
    """One picture, the same for ever: RGB, SIZE x SIZE."""
    scenes = CLASSES[label]
    rng = np.random.default_rng([list(CLASSES).index(label), variant])
    return scenes[variant % len(scenes)](rng).photograph()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: examples)")
    parser.add_argument("--variants", type=int, help="this many of every class instead of the chosen ones")
    options = parser.parse_args()
    pictures = {label: (label, variant) for label, variant in CHOSEN.items()}
    if options.variants is not None:
        pictures = {f"{label}-{v}": (label, v) for label in CLASSES for v in range(options.variants)}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (label, variant) in pictures.items():
        draw(label, variant).save(options.out / f"{name}.png", optimize=True)
    print(f"{len(pictures)} pictures in {options.out}")


if __name__ == "__main__":
    main()
