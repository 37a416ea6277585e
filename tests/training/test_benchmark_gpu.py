"""The GPU's own check: what it says where there is none, its rehearsal, and that it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.model import gpu
from benchmarks.model.training import VARIANTS, Size, build, random_images

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2: nothing was checked, which is no failure of what there is to check."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--only", "captured"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "no GPU" in said.err and "--cpu" in said.err and not said.out


def test_without_images_no_network_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main([]) == 2 and gpu.main(["--data-dir", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.slow
def test_the_rehearsal_takes_every_path(capsys: pytest.CaptureFixture[str]) -> None:
    """All three checks, on tiny networks; parts that are called differ from plain steps by nothing that matters."""
    assert gpu.main(["--cpu"]) == 0
    said = capsys.readouterr().out
    assert all(f"check {name}" in said for name in ("captured", "speed", "robust")) and said.endswith("rehearsed\n")


def test_a_check_that_fails_is_told_by_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step that forgets to move the averages is found."""
    monkeypatch.setattr(gpu.CapturedStep, "_average", lambda self: None)
    row = gpu.check_captured(CPU, steps=2)
    assert not row["passed"] and max(row["differences"].values()) > 1e-3
    monkeypatch.setattr(gpu, "check_captured", lambda *_, **__: row)
    assert gpu.main(["--cpu", "--only", "captured"]) == 1
    assert capsys.readouterr().out.endswith("FAILED: captured\n")


def test_the_captured_variant_takes_the_step_that_ours_takes() -> None:
    """Same network, batch and random numbers: the same loss."""
    losses = []
    for name in ("ours, float32", "ours, captured"):
        variant = VARIANTS[name]
        losses.append(build(variant.on(CPU), Size(2, 4), random_images(8), 1, CPU).step())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)  # the second in bfloat16, where the CPU has it


def test_the_page_says_which_check_failed() -> None:
    document = {"command": "c", "date": "d", "device": "g", "torch": "t"}
    page = gpu.markdown({**document, "checks": [{"check": "speed", "passed": False, "over_published": 3.0}]})
    assert "| speed | NO | over_published 3.0 |" in page
