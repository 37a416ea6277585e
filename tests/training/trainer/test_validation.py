"""Epochs are compared by what the strongest quick attack leaves, on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.attacks.toys import Linear, Lure
from training.attacks.ascent import Budget, quantise
from training.attacks.copies import attackers_copy
from training.attacks.pgd import pgd_trades
from training.data.images import Split
from training.networks import checkpoint
from training.trainer import validation
from training.trainer.run import Run
from training.trainer.step import Runtime
from training.trainer.validation import selection_score, validate

from .test_train import small_set, tiny_recipe

CPU = Runtime(torch.device("cpu"), bf16=False)


def grey(n: int) -> Split:
    return Split(torch.full((n, 3, 4, 4), 128, dtype=torch.uint8), torch.zeros(n, dtype=torch.long))


def test_an_epoch_is_judged_by_the_best_iterate_not_by_the_last() -> None:
    """Of a toy that PGD's last iterate leaves right at T1, and the best one breaks: no robust accuracy at all."""
    net, split = Lure().eval(), grey(4)
    x, y = next(iter(split.batches(4)))
    last = quantise(pgd_trades(attackers_copy(net, "T1"), x, y, Budget(step=1 / 255, steps=10)))
    assert bool((net(last).argmax(1) == y).all())
    figures = validate(net, split, 10, CPU)
    assert (figures["clean"], figures["worst_case"], figures["w_robust"]) == (100.0, 0.0, 50.0)
    assert selection_score(figures) == 50.0 and "auroc" in figures and "pgd" not in figures


def test_the_first_images_are_attacked_and_all_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean accuracy of all, worst case of `WORST_CASE_IMAGES`, in batches of any size; no attack with no steps."""
    monkeypatch.setattr(validation, "WORST_CASE_IMAGES", 4)
    net, split = Linear(torch.full((3, 4, 4), 0.1), -4.0), grey(6)
    split.labels[1], split.labels[5] = 1, 1  # wrong unattacked; the second is beyond those that are attacked
    figures = validate(net, split, 2, CPU, batch=3)
    assert figures == {"clean": pytest.approx(100 * 4 / 6), "worst_case": 75.0, "w_robust": pytest.approx(425 / 6)}
    assert validate(net, split, 0, CPU) == {"clean": pytest.approx(100 * 4 / 6)}


def test_there_is_no_auroc_where_nothing_was_attacked() -> None:
    """A detecting network that names no image rightly has nothing to attack; its epoch is measured all the same."""
    split = grey(3)
    split.labels.fill_(1)
    assert validate(Lure().eval(), split, 2, CPU) == {"clean": 0.0, "worst_case": 0.0, "w_robust": 0.0}


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([{"validation_pgd": 40.0, "validation_w_robust": 60.0}, {"nat": 1.0}], False),
        ([{"validation_pgd": 40.0, "validation_w_robust": 60.0}, {"validation_w_robust": 45.0}], True),
        ([{"validation_clean": 60.0}], True),
    ],
)
def test_a_run_whose_epochs_pgd_chose_chooses_anew(tmp_path: Path, rows: list[dict[str, Any]], kept: bool) -> None:
    """A score by PGD's last iterate is higher than the worst case ever reaches: no later epoch would be published."""
    run = Run(tiny_recipe(tmp_path), small_set(), tmp_path / "run", CPU)
    (tmp_path / "run").mkdir()
    run.progress.history, run.progress.best_score = rows, 60.0
    run.save()
    again = Run(tiny_recipe(tmp_path), small_set(), tmp_path / "run", CPU)
    again.load()
    assert again.progress.history == rows
    assert again.progress.best_score == (60.0 if kept else float("-inf"))
    assert checkpoint.read(run.last)["run"]["best_score"] == 60.0
