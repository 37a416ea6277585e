"""Makes the files beside it, with the code of commit e2d316a: modules are named as they were there.

The networks have width 8, and their weights only a few values, so that xz packs them small. The runs train the first
blocks and a few heads; the rest is frozen.
"""

from __future__ import annotations

import inspect
import json
import lzma
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from training.data.images import ImageSet, Split
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.objectives import DetectorPretraining, Mart, Mtard, PgdAt, Rslad, Standard, Trades
from training.recipe import DEFAULTS, read_recipe
from training.run import Run
from training.static import StaticConfig, build_static
from training.step import Runtime
from training.train import train

STATIC = StaticConfig(arch="resnet18", width=8)
AWNET = AWNetConfig(width=8, extractor_frozen=False)
LABELS = [f"class {i}" for i in range(10)]

# Every key of every table stands in every recipe. What follows is not the default.
TABLES: dict[str, dict[str, Any]] = {
    "network": {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(AWNET).items() if name != "num_classes"},
        "kind": "awnet",
        "freeze": [
            "extractor",
            *(f"blocks.{i}" for i in range(1, 8)),
            *(f"signal_heads.{i}" for i in range(3, 16)),
        ],
    },
    "init": {"checkpoint": "start.pt", "trunk": "static.pt", "extractor": "static.pt", "detector": "start.pt"},
    "attack": {"steps": 2, "forced": 0.25, "through": True, "evading": 0.25, "detached": 0.5, "spread": 1.5},
    "optim": {"epochs": 3, "batch_size": 16, "accumulate": 2, "lr": 0.01, "ema": 0.9, "awp": 0.005, "awp_from": 1},
    "data": {"train_images": 64, "seed": 3},
    "validate": {"images": 20, "attack_steps": 1},
    "runtime": {"threads": 1},
}
OBJECTIVES: dict[str, tuple[type, dict[str, Any]]] = {
    "standard": (Standard, {"label_smoothing": 0.1}),
    "pgd_at": (PgdAt, {"nat_eps": 3.0, "nat_steps": 2, "nat_share": 0.5, "noise": 0.25, "clean": 0.25}),
    "n_fgsm": (PgdAt, {}),
    "trades": (Trades, {}),
    "mart": (Mart, {}),
    "rslad": (Rslad, {"teacher": "static.pt"}),
    "mtard": (Mtard, {"nat_teacher": "static.pt", "adv_teacher": "static.pt", "eta_decays": True, "noise": 0.25}),
    "detector": (DetectorPretraining, {"noise": 0.25}),
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {
        "network": {
            "kind": "static",
            "freeze": [],
            **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(STATIC).items()},
        },
        "init": {"checkpoint": "static.pt"},
        "optim": {"optimizer": "adamw", "lr": 0.001, "schedule": "constant"},
    },
    "pgd_at": {"attack": {"start": "uniform"}, "optim": {"schedule": "multistep", "milestones": [1]}},
    "n_fgsm": {"attack": {"start": "n_fgsm", "steps": 1}},
    "detector": {"optim": {"awp": 0.0}},
}


def images() -> ImageSet:
    """64 images to learn from, 20 to validate with; `test_kept` makes the same ones."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 10, (n,), generator=generator))

    return ImageSet(split(64), split(20), split(20), LABELS)


def coarse(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`net` with weights of four values each, and batch-norm statistics of random images."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                # Heads with larger weights would drive omega into saturation, and rounding errors to any size.
                scale = 0.01 if name.startswith("signal_heads.") else 0.9 * (2 / parameter[0].numel()) ** 0.5
                levels = torch.randint(0, 4, parameter.shape, generator=generator)
                parameter.copy_((levels - 1.5) * scale)
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = None  # a plain mean
    x = images().train.images[:32].float() / 255
    with torch.no_grad():
        for _ in range(3):
            if isinstance(net, AWNet):
                net(x, "adv")
                net(x, "nat")
            else:
                net(x)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    return net.eval()


def toml(recipe: dict[str, dict[str, Any]]) -> str:
    """As TOML: for what stands in a recipe, JSON's values are TOML's."""
    tables = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in recipe.items()
    ]
    return "\n".join(tables)


def recipe_of(name: str) -> dict[str, dict[str, Any]]:
    kind, given = OBJECTIVES[name]
    signature = inspect.signature(kind.__init__).parameters.values()
    options = {p.name: p.default for p in signature if p.default is not p.empty}
    merged = {table: {**DEFAULTS[table], **TABLES.get(table, {})} for table in DEFAULTS}
    for table, values in VARIANTS.get(name, {}).items():
        merged[table] = values if table in ("network", "init") else {**merged[table], **values}
    merged["network"].pop("num_classes", None)
    return {**merged, "objective": {"name": name, **options, **given}}


def calm(name: str) -> list[str]:
    """Overrides for attacks that reach nowhere: signs of gradients turn rounding into percents of a loss."""
    more = {"pgd_at": ["objective.nat_eps=1e-5"], "detector": ["objective.eps=[1e-5]"]}
    return ["attack.eps=1e-5", "attack.step=1e-5", *more.get(name, [])]


def losses(recipe: dict[str, dict[str, Any]], out: Path, steps: int, resume: bool = False) -> list[dict[str, float]]:
    """Of the first `steps` steps, or of the next ones."""
    run = Run(recipe, images(), out, Runtime(torch.device("cpu"), False))
    if resume:
        run.load()
    found = []
    for (x, y, chance), _ in zip(run.batches(), range(steps), strict=False):
        loss = run.step(x, y, chance)
        found.append({"total": loss.total.item(), **loss.parts})
    return found


def main(target: Path) -> None:
    torch.set_num_threads(1)
    expected: dict[str, Any] = {}
    x = images().test.images[:4].float() / 255
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        for stem, net in (("static", coarse(build_static(STATIC), 1)), ("start", coarse(AWNet(AWNET), 2))):
            document = checkpoint.pack(net, labels=LABELS, recipe={"name": stem}, provenance={"commit": "e2d316a"})
            checkpoint.save(folder / f"{stem}.pt", document)
        (target / "recipes").mkdir(exist_ok=True)
        for stem in OBJECTIVES:
            path = target / "recipes" / f"{stem}.toml"
            path.write_text(toml(recipe_of(stem)), "utf-8")
            expected.setdefault("attacked", {})[stem] = losses(read_recipe(path), folder / stem, 1)
            expected.setdefault("first_steps", {})[stem] = losses(read_recipe(path, calm(stem)), folder / stem, 2)
        run, recipe = folder / "run", read_recipe(target / "recipes" / "mtard.toml")
        for _ in range(6):  # an epoch and a half, a step at a time
            train(recipe, images(), run, name="mtard", resume=True, stop_after_minutes=0)
        still = read_recipe(target / "recipes" / "mtard.toml", calm("mtard"))
        expected["next_steps"] = losses(still, run, 2, resume=True)
        shutil.copy(run / "last.pt", folder / "last.pt")
        shutil.copy(run / "best.pt", folder / "best.pt")
        with torch.no_grad():
            for stem in ("static", "best"):
                loaded = checkpoint.load(folder / f"{stem}.pt")
                expected[stem] = {"logits": loaded.network(x).tolist()}
            best = checkpoint.load(folder / "best.pt")
            expected["best"]["p_type"] = best.awnet.detect(x).p_type.tolist()
        assert best.calibration is not None
        expected["best"]["thresholds"] = {str(fpr): score for fpr, score in best.calibration.thresholds.items()}
        for stem in ("static", "start", "best", "last"):
            packed = lzma.compress((folder / f"{stem}.pt").read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (target / f"{stem}.pt.xz").write_bytes(packed)
            print(stem, (folder / f"{stem}.pt").stat().st_size, len(packed))
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
