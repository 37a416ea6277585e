"""The leaderboard is made of the reports beside it, in the order of the rule, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training import leaderboard
from training.evaluation.points_report import LEAST_CLEAN
from training.evaluation.tolerance import MOST_FLAGGED

REPORTS = Path(__file__).resolve().parents[2] / "training/reports"


def share(value: float) -> list[float]:
    return [value, max(0.0, value - 0.01), min(1.0, value + 0.01)]


def points(
    folder: Path,
    name: str,
    clean: float,
    left: float,
    flagged: float = 0.05,
    chosen: bool = True,
    finished: bool = True,
) -> None:
    """A report of training.operating_points with one bounded point."""
    row = {"name": "auto, a_max 0.4, T 1", "mode": "auto", "finished": finished, "autoattack": None, "flagged": None}
    row |= {"clean": share(clean), "worst_case": share(left)}
    robust = row | {"name": "robust", "mode": "robust", "worst_case": share(left + 0.05)}
    kind = {"group": "judging", "images": 100, "mean": {"0.01": share(flagged), "0.05": share(flagged)}}
    document = {
        "sha256": name * 4,
        "setup": {"steps": 50, "images": 300},
        "parameters": 900_000,
        "points": [robust, row],
        "chosen": row["name"] if chosen else None,
        "false_positives": {"speckle": kind},
    }
    path = folder / "operating-points" / name / "points.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))


def evaluation(folder: Path, name: str, left: float, split: str = "validation") -> None:
    part: dict[str, Any] = {"images": 200, "accuracy": left}
    parts = {"clean": {"images": 200, "accuracy": 0.9}, "T1/pgd": part, "T2/pgd": part | {"accuracy": left + 0.1}}
    document = {"setup": {"sha256": "0", "split": split, "steps": 10}, "parts": parts}
    (folder / f"variants-validation-{name}.json").write_text(json.dumps(document))


def test_the_order_is_the_rule(tmp_path: Path) -> None:
    """Clean enough, quiet enough, then the worst case; who was judged by weaker attacks stands below."""
    points(tmp_path, "best", 0.87, 0.25)
    points(tmp_path, "weaker", 0.9, 0.24)
    points(tmp_path, "loud", 0.87, 0.5, flagged=MOST_FLAGGED + 0.01)
    points(tmp_path, "unclean", LEAST_CLEAN - 0.001, 0.6, chosen=False)
    points(tmp_path, "bound", 0.87, 0.7, chosen=False, finished=False)
    evaluation(tmp_path, "old", 0.7)
    document = leaderboard.leaderboard(tmp_path)
    assert [row["name"] for row in document["rows"]] == ["best", "weaker", "bound", "loud", "unclean", "old"]
    assert "| at most 70.0 |" in leaderboard.markdown(document), "what is left of an unfinished one is a bound"
    old = document["rows"][-1]
    assert old["judge"] == "T1/pgd, 10 steps, 200 images" and old["robust"][0] == 0.7 and not old["worst_case_judged"]


def test_the_program_writes_both_files_and_refuses_what_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is chosen by test images, so no report of them gets in."""

    def refused() -> str:
        with pytest.raises(SystemExit) as stopped:
            leaderboard.main(["--reports", str(tmp_path)])
        assert stopped.value.code == 2 and not (tmp_path / "leaderboard.json").exists()
        return capsys.readouterr().err

    assert "no operating-points/*/points.json" in refused()
    evaluation(tmp_path, "chosen-by-test", 0.5, split="test")
    assert "is of test images" in refused()
    (tmp_path / "variants-validation-chosen-by-test.json").write_text("{}")
    assert "is no report of a variant" in refused()
    (tmp_path / "variants-validation-chosen-by-test.json").unlink()
    points(tmp_path, "best", 0.87, 0.25)
    assert leaderboard.main(["--reports", str(tmp_path)]) == 0
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| best | auto, a_max 0.4, T 1 | 0.9 M | 87.0 (86.0-88.0) | 25.0 (24.0-26.0) | 30.0 (29.0-31.0) |" in text
    assert "[operating-points/best/points.json](operating-points/best/points.json)" in text


def test_the_committed_leaderboard_is_that_of_the_committed_reports() -> None:
    document = leaderboard.leaderboard(REPORTS)
    assert json.loads((REPORTS / "leaderboard.json").read_text("utf-8")) == document
    assert (REPORTS / "leaderboard.md").read_text("utf-8") == leaderboard.markdown(document)
