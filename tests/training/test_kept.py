"""What was written at commit e2d316a (kept/README.md) is read for good, and gives the values that it gave there."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from training.data.images import ImageSet, Split
from training.networks import checkpoint
from training.train import train
from training.trainer.recipe import read_recipe
from training.trainer.run import Run
from training.trainer.step import Runtime

KEPT = Path(__file__).with_name("kept")
EXPECTED: dict[str, Any] = json.loads((KEPT / "expected.json").read_text("utf-8"))
RECIPES = sorted(path.stem for path in (KEPT / "recipes").glob("*.toml"))
CHECKPOINTS = sorted((Path(__file__).parents[2] / "training/checkpoints").glob("*.pt"))
# Bounds on the difference to the values of that day, relative or absolute. Kernels of other CPUs sum float32 in another
# order (measured: SSE4.1, AVX2, AVX-512 of oneDNN and of torch). Outputs then differ by 4e-6.
OUTPUTS = {"rel": 1e-4, "abs": 1e-4}
# Losses of two steps differ by up to 7e-4: a unit that is 0 but for rounding turns a gradient, and so the next weights.
LOSSES = {"rel": 2e-3, "abs": 2e-3}
# The first losses against attacks differ by up to 2e-3: signs of the gradient turn with it.
ATTACKED = {"rel": 1e-2, "abs": 1e-2}

Recipe = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept checkpoints as files, where the recipes look for them."""
    unpacked = tmp_path_factory.mktemp("kept")
    for path in KEPT.glob("*.pt.xz"):
        (unpacked / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return unpacked


def images() -> ImageSet:
    """Those that `kept/make.py` trained on."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 10, (n,), generator=generator))

    return ImageSet(split(64), split(20), split(20), [f"class {i}" for i in range(10)])


def calm(name: str) -> list[str]:
    """The recipe's attacks reach nowhere, so that nothing hangs on the sign of a gradient."""
    more = {"pgd_at": ["objective.nat_eps=1e-5"], "detector": ["objective.eps=[1e-5]"]}
    return ["attack.eps=1e-5", "attack.step=1e-5", *more.get(name, [])]


def steps(recipe: Recipe, out: Path, count: int, resume: bool = False) -> list[dict[str, float]]:
    """The losses of so many steps: the first ones, or the next ones of the run in `out`."""
    run = Run(recipe, images(), out, Runtime(torch.device("cpu"), False))
    if resume:
        run.load()
    found = []
    for (x, y, *rest), _ in zip(run.batches(), range(count), strict=False):
        losses = run.step(x, y, *rest)
        assert losses is not None
        found.append({"total": losses.total, **losses.terms})
    return found


def same(found: list[dict[str, float]], expected: list[dict[str, float]], bounds: dict[str, float]) -> None:
    assert [list(losses) for losses in found] == [list(losses) for losses in expected]
    for losses, others in zip(found, expected, strict=True):
        assert losses == pytest.approx(others, **bounds)


def test_a_static_network_is_what_it_was(folder: Path) -> None:
    """Its logits are those of its day."""
    loaded = checkpoint.load(folder / "static.pt")
    assert (loaded.kind, loaded.labels[3], loaded.provenance) == ("static", "class 3", {"commit": "e2d316a"})
    with torch.no_grad():
        logits = loaded.network(images().test.images[:4].float() / 255)
    assert logits.numpy() == pytest.approx(torch.tensor(EXPECTED["static"]["logits"]).numpy(), **OUTPUTS)


def test_a_calibrated_network_is_what_it_was(folder: Path) -> None:
    """Logits, detector, thresholds, recipe and metrics: all that an export needs."""
    loaded, expected = checkpoint.load(folder / "best.pt"), EXPECTED["best"]
    x = images().test.images[:4].float() / 255
    with torch.no_grad():
        logits, p_type = loaded.awnet(x), loaded.awnet.detect(x).p_type
    assert logits.numpy() == pytest.approx(torch.tensor(expected["logits"]).numpy(), **OUTPUTS)
    assert p_type.numpy() == pytest.approx(torch.tensor(expected["p_type"]).numpy(), **OUTPUTS)
    calibration = loaded.calibration
    assert calibration is not None and calibration.images == sum(calibration.histogram_counts) == 20
    assert {str(fpr): score for fpr, score in calibration.thresholds.items()} == expected["thresholds"]
    assert (
        len(calibration.omega_mean)
        == len(calibration.omega_std)
        == sum(o.shape[1] for o in loaded.awnet.detect(x).omega)
    )
    assert loaded.recipe["optim"]["awp"] == 0.005 and loaded.metrics["validation"]["pgd"] >= 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_means_what_it_meant(folder: Path, name: str) -> None:
    """Each sets every key: its first steps have the losses of their day, with its attacks and without."""
    torch.set_num_threads(1)
    path = KEPT / "recipes" / f"{name}.toml"
    same(steps(read_recipe(path), folder / name, 1), EXPECTED["attacked"][name], ATTACKED)
    same(steps(read_recipe(path, calm(name)), folder / name, 2), EXPECTED["first_steps"][name], LOSSES)


@pytest.mark.slow
def test_a_run_goes_on(folder: Path) -> None:
    """In the middle of an epoch, with weights, averages, momentum, objective and history; and on to its end."""
    torch.set_num_threads(1)
    path, out = KEPT / "recipes" / "mtard.toml", folder / "run"
    out.mkdir()
    for name in ("last.pt", "best.pt"):
        shutil.copy(folder / name, out)
    same(steps(read_recipe(path, calm("mtard")), out, 2, resume=True), EXPECTED["next_steps"], LOSSES)
    history_before = checkpoint.read(out / "last.pt")["run"]["history"]
    best = train(read_recipe(path), images(), out, resume=True)
    history = json.loads((out / "history.json").read_text("utf-8"))["epochs"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[0] == history_before[0] and best["epoch"] in (1, 2, 3)
    assert checkpoint.load(out / "best.pt").calibration is not None


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_published_checkpoint_loads(path: Path) -> None:
    """Each file of training/checkpoints/: recipes, reports and the exporter start from them."""
    loaded = checkpoint.load(path)
    with torch.no_grad():
        logits = loaded.network(torch.full((2, 3, 32, 32), 0.5))
    assert logits.shape == (2, len(loaded.labels)) and bool(logits.isfinite().all())
