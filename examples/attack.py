"""Make the adversarial twin of each example picture, on networks that the served model was not trained with.

Each NAME.png gets a NAME-adversarial.png beside it: at most 8 levels off in every pixel, so that a person sees the same
picture, and wrong for the surrogates, which are attacked together. What a network that was never seen answers is
transfer, threat level T0.

    python -m examples.attack --surrogate pyautoattack    # every example; the committed twins
    python -m examples.attack --surrogate a=a.pt b=b.pt --attack cw_inf --pictures examples/ship.png

How they were made is written to `twins.json` beside them, where the server's page reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.draw import CLASSES
from training.attacks.ascent import Budget, Model, quantise
from training.attacks.catalogue import ATTACKS
from training.evaluation.attackers import load_surrogate

HERE = Path(__file__).parent
LABELS = list(CLASSES)  # in the order of CIFAR-10
SUFFIX = "-adversarial"
RECIPE = "twins.json"
SEED = 0
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


def budget_of(attack: str, steps: int | None) -> Budget:
    """The attack's own, with this many gradient steps."""
    budget = ATTACKS[attack][1]
    return budget if steps is None else replace(budget, steps=steps)


def recipe(
    options: Mapping[str, Any], pictures: Sequence[Path], answers: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """How these twins were made: eps and step in levels of 255, and what each surrogate said of both images."""
    budget = budget_of(options["attack"], options["steps"])
    surrogates = " ".join(options["surrogate"])
    steps = "" if options["steps"] is None else f" --steps {options['steps']}"
    return {
        "command": f"python -m examples.attack --surrogate {surrogates} --attack {options['attack']}{steps}",
        "attack": options["attack"],
        "eps": round(budget.eps * 255, 3),
        "step": round(budget.step * 255, 3),
        "steps": budget.steps,
        "seed": SEED,
        "surrogates": list(answers),
        "twins": {
            picture.stem: {
                "label": LABELS[label(picture)],
                "sha256": hashlib.sha256(twin_of(picture).read_bytes()).hexdigest(),
                "fooled": [[name, LABELS[a[i]], LABELS[b[i]]] for name, (a, b) in answers.items()],
            }
            for i, picture in enumerate(pictures)
        },
    }


def twin_of(picture: Path) -> Path:
    """The file of its twin."""
    return picture.with_name(f"{picture.stem}{SUFFIX}.png")


def twins(
    x: Tensor, y: Tensor, surrogates: Sequence[Model], attack: str, steps: int | None, seed: int = SEED
) -> Tensor:
    """Adversarial images against the mean of the surrogates' logits, rounded to 8 bits; shapes as x."""

    def together(z: Tensor) -> Tensor:
        return torch.stack([surrogate(z).log_softmax(1) for surrogate in surrogates]).mean(0)

    torch.manual_seed(seed)
    return quantise(ATTACKS[attack][0](together, x, y, budget_of(attack, steps)))


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
        twin = twin_of(picture)
        write(twin, x_adv[i])
        said = "; ".join(f"{name}: {LABELS[a[i]]} -> {LABELS[b[i]]}" for name, (a, b) in answers.items())
        print(f"{twin}  {said}")
    if not options.pictures:
        text = json.dumps(recipe(vars(options), pictures, answers), indent=1, ensure_ascii=False)
        (HERE / RECIPE).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
