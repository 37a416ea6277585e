"""Make the adversarial twin of each example picture, on networks that the served model was not trained with.

Each NAME.png gets a NAME-adversarial.png beside it: at most 8 levels off in every pixel, so that a person sees the same
picture, and wrong for the surrogates, which are attacked together. What a network that was never seen answers is
transfer, threat level T0.

    python -m examples.attack --surrogate pyautoattack    # every example; the committed twins
    python -m examples.attack --surrogate a=a.pt b=b.pt --attack cw_inf --pictures examples/ship.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.draw import CLASSES
from training.attacks.ascent import Model, quantise
from training.attacks.catalogue import ATTACKS
from training.evaluation.attackers import load_surrogate

HERE = Path(__file__).parent
LABELS = list(CLASSES)  # in the order of CIFAR-10
SUFFIX = "-adversarial"
NAMED_OTHERWISE = {"chelsea": "cat"}  # pictures whose file name is not their class


def label(picture: Path) -> int:
    """The true class of an example, by its name; ValueError where the name tells nothing."""
    name = NAMED_OTHERWISE.get(picture.stem, picture.stem)
    if name not in LABELS:
        raise ValueError(f"{picture} is named after no class; there are {', '.join(LABELS)}")
    return LABELS.index(name)


def read(pictures: Sequence[Path]) -> Tensor:
    """[N, 3, 32, 32] float32 in [0, 1]."""
    arrays = [np.asarray(Image.open(picture).convert("RGB")).transpose(2, 0, 1) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).float() / 255


def write(picture: Path, x: Tensor) -> None:
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(picture, optimize=True)


def twins(x: Tensor, y: Tensor, surrogates: Sequence[Model], attack: str, steps: int | None, seed: int = 0) -> Tensor:
    """Adversarial images against the mean of the surrogates' logits, rounded to 8 bits; shapes as x."""

    def together(z: Tensor) -> Tensor:
        return torch.stack([surrogate(z).log_softmax(1) for surrogate in surrogates]).mean(0)

    make, budget = ATTACKS[attack]
    if steps is not None:
        budget = type(budget)(budget.eps, budget.step, steps)
    torch.manual_seed(seed)
    return quantise(make(together, x, y, budget))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", nargs="+", required=True, metavar="NAME=FILE", help="networks to attack")
    parser.add_argument("--attack", choices=sorted(ATTACKS), default="pgd_trades")
    parser.add_argument("--steps", type=int, help="gradient steps (default: the attack's own number)")
    parser.add_argument("--pictures", nargs="+", type=Path, help="default: every example that is no twin")
    options = parser.parse_args()
    pictures = options.pictures or sorted(p for p in HERE.glob("*.png") if not p.stem.endswith(SUFFIX))
    try:
        y = torch.tensor([label(picture) for picture in pictures])
        surrogates = [load_surrogate(spec, torch.device("cpu")) for spec in options.surrogate]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    x = read(pictures)
    x_adv = twins(x, y, [s.network for s in surrogates], options.attack, options.steps)
    with torch.inference_mode():
        answers = {s.name: (s.network(x).argmax(1), s.network(x_adv).argmax(1)) for s in surrogates}
    for i, picture in enumerate(pictures):
        twin = picture.with_name(f"{picture.stem}{SUFFIX}.png")
        write(twin, x_adv[i])
        said = "; ".join(f"{name}: {LABELS[a[i]]} -> {LABELS[b[i]]}" for name, (a, b) in answers.items())
        print(f"{twin}  {said}")


if __name__ == "__main__":
    main()
