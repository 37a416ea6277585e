"""A report keeps what was finished, adds up what follows from it, and distrusts what looks too good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.evaluation.report import Report, best_case, from_hex, masking_checks, to_hex, w_robust

SETUP = {"checkpoint": "best.pt", "images": 4, "split": "test", "eps": 8.0, "seed": 0}


def test_w_robust_by_hand() -> None:
    """Eq. 25 with both weights 0.5: the paper's 91.49 clean and 50.51 robust make 71.00."""
    assert w_robust(91.49, 50.51) == pytest.approx(71.00)
    assert w_robust(0.9, 0.5, gamma_nat=0.25) == pytest.approx(0.6)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 64, 1001])
def test_bits_survive_the_file(n: int) -> None:
    """Successes are kept image by image, first and last included."""
    bits = torch.rand(n) < 0.5
    bits[0] = True
    assert torch.equal(from_hex(to_hex(bits), n), bits)
    assert not from_hex(to_hex(torch.zeros(n, dtype=torch.bool)), n).any()


def evasion(bits: list[int]) -> dict[str, Any]:
    return {"images": len(bits), "success_bits": {"0.05": to_hex(torch.tensor(bits).bool())}}


def test_the_best_case_takes_the_strongest_attack_for_each_image() -> None:
    """1100 and 0110 together lose three of four images, more than either alone."""
    whole = best_case({"a": evasion([1, 1, 0, 0]), "b": evasion([0, 1, 1, 0])})
    assert whole["sr_at"] == {"0.05": 0.75} and whole["joint_at"] == {"0.05": 0.25}
    assert whole["images"] == 4 and whole["attacks"] == ["a", "b"]


def part(accuracy: float, n: int = 1000, **more: Any) -> dict[str, Any]:
    return {"images": n, "accuracy": accuracy, "w_robust": accuracy, **more}


def verdicts(parts: dict[str, Any]) -> dict[str, bool]:
    return {c["check"].split(" is ")[0].split(" has ")[0]: c["holds"] for c in masking_checks(parts)}


def test_masking_checks_pass_in_the_expected_order() -> None:
    """One step, then iterations; transfer, then white box; plain, then adaptive; gradients alive."""
    parts = {
        "T0/other/pgd": part(0.6),
        "T2/fgsm": part(0.5),
        "T2/pgd": part(0.4, sr_at={"0.05": 0.3}),
        "T3": {"images": 500, "sr_at": {"0.05": 0.6}},
        "zero_gradients": {"class_images": 0.0, "type_images": 0.002, "class_pixels": 0.5},
    }
    checks = masking_checks(parts)
    assert len(checks) == 5 and all(c["holds"] for c in checks)


@pytest.mark.parametrize(
    ("parts", "check"),
    [
        ({"T2/fgsm": part(0.3), "T2/pgd": part(0.5)}, "an iterative attack"),
        ({"T0/other/pgd": part(0.2), "T2/pgd": part(0.5)}, "the white box"),
        (
            {"T2/pgd": part(0.3, sr_at={"0.05": 0.7}), "T3": {"images": 900, "sr_at": {"0.05": 0.1}}},
            "an adaptive attack",
        ),
        ({"zero_gradients": {"class_images": 0.3}}, "hardly any image"),
    ],
)
def test_masking_checks_fail_where_gradients_are_masked(parts: dict[str, Any], check: str) -> None:
    """Each check fails on the pattern that it is there for."""
    assert verdicts(parts) == {check: False}


def test_a_difference_within_noise_does_not_fail_a_check() -> None:
    """Two points on 100 images are less than two standard errors."""
    assert verdicts({"T2/fgsm": part(0.50, 100), "T2/pgd": part(0.52, 100)}) == {"an iterative attack": True}


def test_a_report_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Finished parts are there again for the same set-up, and the tables are written beside them."""
    path = tmp_path / "deep" / "report.json"
    Report(path, SETUP).put("T2/pgd", part(0.4, seconds=1.0))
    again = Report(path, dict(SETUP))
    assert again.parts == {"T2/pgd": part(0.4, seconds=1.0)}
    again.put("T2/fgsm", part(0.5, seconds=1.0))
    assert set(json.loads(path.read_text())["parts"]) == {"T2/pgd", "T2/fgsm"}
    assert "| T2/fgsm | 1000 | 50.00 |" in path.with_suffix(".md").read_text()
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.json", "report.md"]


def test_a_best_case_on_disk_is_recomputed_not_believed(tmp_path: Path) -> None:
    """A run that adds an evasion renews the total instead of keeping the old one."""
    path = tmp_path / "r.json"
    first = {**evasion([1, 0, 0, 0]), "sr_at": {"0.05": 0.25}}
    second = {**evasion([0, 0, 0, 1]), "sr_at": {"0.05": 0.25}}
    Report(path, SETUP).put("T3/a", first)
    assert json.loads(path.read_text())["parts"]["T3"]["sr_at"] == {"0.05": 0.25}
    Report(path, SETUP).put("T3/b", second)
    assert json.loads(path.read_text())["parts"]["T3"]["sr_at"] == {"0.05": 0.5}


def test_parts_of_another_set_up_are_not_mixed_in(tmp_path: Path) -> None:
    """Another seed (or checkpoint, or eps) is refused with its name, unless a fresh report is asked for."""
    path = tmp_path / "r.json"
    Report(path, SETUP).put("T2/pgd", part(0.4))
    with pytest.raises(ValueError, match="seed"):
        Report(path, {**SETUP, "seed": 1})
    assert Report(path, {**SETUP, "seed": 1}, fresh=True).parts == {}


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"setup": 1, "parts": {}}', "not json"])
def test_a_file_that_is_no_report_is_not_overwritten(tmp_path: Path, content: str) -> None:
    """Whatever stands at --out and is not ours stays as it is."""
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a report"):
        Report(path, SETUP)
    assert path.read_text() == content
