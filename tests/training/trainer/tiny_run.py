"""A training on random images, for tests that need processes of their own: tiny_run.py RECIPE-AS-JSON OUT [PROCESSES].

Writes what `training.train` writes, and curve.json: the losses of every step that this process took.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import training.trainer.run
from training.data.images import ImageSet, Split
from training.train import train
from training.trainer.distributed import process_group
from training.trainer.step import Losses


def images() -> ImageSet:
    """64 images to learn from, 20 to validate with."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 10, (n,), generator=generator))

    return ImageSet(split(64), split(20), split(20), [f"class {i}" for i in range(10)])


def run(recipe: dict[str, dict[str, Any]], out: Path) -> list[dict[str, float]]:
    """The whole recipe, or what is left of it; returns the losses of every step taken."""
    curve: list[dict[str, float]] = []
    step = training.trainer.run.train_step

    def recorded(*arguments: Any, **options: Any) -> Losses:
        losses = step(*arguments, **options)
        curve.append({"total": losses.total, **losses.terms})
        return losses

    training.trainer.run.train_step = recorded  # type: ignore[assignment]
    try:
        with process_group("cpu") as (world, device):
            train(recipe, images(), out, device=device, world=world, resume=True)
            if world.first:
                (out / "curve.json").write_text(json.dumps(curve))
    finally:
        training.trainer.run.train_step = step
    return curve


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:  # what torchrun would set; forked, because importing torch takes longer than this training
        os.environ.update(WORLD_SIZE=sys.argv[3], RANK="0")
        for rank in range(1, int(sys.argv[3])):
            if os.fork() == 0:
                os.environ["RANK"] = str(rank)
                run(json.loads(sys.argv[1]), Path(sys.argv[2]))
                os._exit(0)
    run(json.loads(sys.argv[1]), Path(sys.argv[2]))
