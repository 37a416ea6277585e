"""Attacks that are bounded otherwise than in L-infinity: in L2, in how many pixels they change, or in a square patch.

They are for judging only: nothing here was trained against them. What counts is the best iterate as 8-bit image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .ascent import Model, margin, norm, normalised, quantise
from .best import BestIterate, deployed

MOMENTUM = 0.75


class Shape(Protocol):
    """Which images x_adv an attacker may make of x; all tensors are [n,3,H,W]."""

    @property
    def reach(self) -> tuple[float, float]:
        """The size of the first and of the last step along `direction`, in pixel values of [0,1]."""
        ...

    def place(self, x: Tensor) -> Tensor:
        """1 where a try may change pixels and 0 elsewhere."""
        ...

    def start(self, x: Tensor, place: Tensor) -> Tensor:
        """A random point that is allowed."""
        ...

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest step of size 1."""
        ...

    def fit(self, z: Tensor, x: Tensor) -> Tensor:
        """The point near z that is allowed."""
        ...

    def rounded(self, z: Tensor, x: Tensor) -> Tensor:
        """An 8-bit image near the allowed z that is allowed too."""
        ...


@dataclass(frozen=True)
class L2:
    """All pixels, by at most `radius` in Euclidean norm over the image."""

    radius: float = 0.5

    @property
    def reach(self) -> tuple[float, float]:
        return self.radius / 2, self.radius / 20

    def place(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def start(self, x: Tensor, place: Tensor) -> Tensor:
        return self.fit(x + self.radius * self.direction(torch.randn_like(x)), x)

    def direction(self, gradient: Tensor) -> Tensor:
        return normalised(gradient)

    def fit(self, z: Tensor, x: Tensor) -> Tensor:
        delta = z - x
        return (x + delta * (self.radius / norm(delta).clamp(min=1e-30)).clamp(max=1)).clamp(0, 1)

    def rounded(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest one where it lies in the ball, or of a point closer to x, or one with no value beyond z's."""
        delta = z - x
        out = (x * 255).round() + (delta * 255).trunc()
        for share in (0.8, 0.9, 0.96, 0.98, 0.99, 1.0):
            nearer = ((x + share * delta) * 255).round()
            inside = norm(nearer / 255 - x) <= self.radius * (1 + 1e-6)
            out = torch.where(inside, nearer, out)
        return out / 255


@dataclass(frozen=True)
class Sparse:
    """At most `pixels` pixels, each in all three channels and by any amount: projected descent in L0.

    After Croce and Hein (arXiv 1909.05040): of all pixels, those that moved farthest are kept.
    """

    pixels: int = 10
    reach = (1.0, 0.1)

    def place(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def start(self, x: Tensor, place: Tensor) -> Tensor:
        return self.fit(x + 2 * torch.rand_like(x) - 1, x)

    def direction(self, gradient: Tensor) -> Tensor:
        """1 at its largest value."""
        return gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)

    def fit(self, z: Tensor, x: Tensor) -> Tensor:
        delta = z.clamp(0, 1) - x
        moved = delta.square().sum(1).flatten(1)
        kept = torch.zeros_like(moved).scatter(1, moved.topk(min(self.pixels, moved.shape[1]), dim=1).indices, 1)
        return x + delta * kept.view(len(x), 1, *x.shape[2:])

    def rounded(self, z: Tensor, x: Tensor) -> Tensor:
        return quantise(z)


@dataclass(frozen=True)
class Patch:
    """A square of `side` pixels at a random place, one an image and try, with any content."""

    side: int = 5
    reach = (0.25, 2 / 255)

    def place(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        if self.side > min(height, width):
            raise ValueError(f"a patch of {self.side} pixels does not fit into an image of {height} x {width}")
        inside = []
        for size in (height, width):
            first = torch.randint(size - self.side + 1, (n, 1), device=x.device)
            at = torch.arange(size, device=x.device)[None]
            inside.append((at >= first) & (at < first + self.side))
        rows, columns = inside
        return (rows[:, None, :, None] & columns[:, None, None, :]).expand_as(x).to(x.dtype)

    def start(self, x: Tensor, place: Tensor) -> Tensor:
        return torch.where(place > 0, torch.rand_like(x), x)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def fit(self, z: Tensor, x: Tensor) -> Tensor:
        return z.clamp(0, 1)

    def rounded(self, z: Tensor, x: Tensor) -> Tensor:
        return quantise(z)


# by name and bound: a radius in pixel values of [0,1], a number of pixels, the side of a square in pixels
SHAPES: dict[str, Shape] = {"l2@0.5": L2(0.5), "l2@1": L2(1.0), "sparse@10": Sparse(10), "patch@5": Patch(5)}


def shaped(
    model: Model,
    x: Tensor,
    y: Tensor,
    shape: Shape,
    steps: int = 50,
    restarts: int = 1,
    best: BestIterate | None = None,
) -> BestIterate:
    """Ascend the class margin among the images that `shape` allows, and keep the best 8-bit one for each image.

    Steps with momentum shrink geometrically. Gradients are those of `model`, an attacker's copy, at the 8-bit image
    that is judged; the judge is the deployed network. An image is left alone from its first success on.

    Args:
        x: 8-bit images [N,3,H,W] in [0,1]; y: their classes [N].
        steps: gradient steps of each try; restarts: tries in all, the first from x itself.
        best: what an attack with another copy of the same network found, gone on with in place.

    Raises:
        ValueError: the shape does not fit into the images.
    """
    x = quantise(x)
    best = BestIterate(deployed(model), x, y) if best is None else best
    first, last = shape.reach
    for attempt in range(restarts):
        rows = best.resisting
        place = shape.place(x[rows])
        at = x[rows] if attempt == 0 else shape.start(x[rows], place)
        velocity = torch.zeros_like(at)
        for i in range(steps + 1):
            z = shape.rounded(at, x[rows]).requires_grad_(True)
            found = best.enter(z, rows)
            todo = (found <= 0).nonzero().squeeze(1)
            if i == steps or not len(todo):
                break
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(margin(model(z), y[rows]).sum(), z)
            velocity = MOMENTUM * velocity + normalised(gradient * place)
            size = first * (last / first) ** (i / max(1, steps - 1))
            at = shape.fit(at + size * shape.direction(velocity), x[rows])
            rows, at, velocity, place = rows[todo], at[todo], velocity[todo], place[todo]
    return best
