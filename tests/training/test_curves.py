"""Training curves show what the reports hold, stage after stage; what is no report is refused, nothing written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from training import curves

REPORTS = Path(__file__).resolve().parents[2] / "training/reports"


def report(path: Path, *epochs: dict[str, float], name: str = "small/one") -> Path:
    path.write_text(json.dumps({"name": name, "recipe": {}, "epochs": epochs}))
    return path


def test_stages_stand_one_after_the_other_in_training_time(tmp_path: Path) -> None:
    first = curves.stage(
        report(tmp_path / "a.json", {"train_seconds": 60, "nat": 2.0}, {"train_seconds": 120, "nat": 1.0})
    )
    second = curves.stage(report(tmp_path / "b.json", {"train_seconds": 60, "type": 0.5, "validation_auroc": 0.9}))
    times = curves.ends([first, second])
    assert times == [[1.0, 3.0], [4.0]]
    lines = curves._lines([first, second], times, curves.LOSSES)
    assert set(lines) == {"natural images", "detector"}, "what no stage has is no line"
    minutes, values = lines["natural images"]
    assert minutes == [1.0, 3.0, 3.0, 4.0] and values[:2] == [2.0, 1.0]
    assert all(math.isnan(value) for value in values[2:]), "no line leads into a stage that has no such figure"


def test_the_picture_of_the_committed_stages_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "curves"
    reports = [str(REPORTS / f"small-{name}.json") for name in ("0-trunk", "a-detector", "f-bounded")]
    assert curves.main([*reports, "--out", str(out)]) == 0
    drawn = out.with_suffix(".svg").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000 and drawn.rstrip().endswith("</svg>")
    assert curves.main([*reports, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again.svg").read_text() == drawn, "the file depends on the numbers alone"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "x", "epochs": []}', '{"name": "x", "epochs": [{"nat": 1}]}']
)
def test_what_is_no_report_is_named_and_nothing_is_drawn(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        curves.main([str(wrong), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "wrong.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [wrong]


def test_epochs_without_any_figure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        curves.main([str(report(tmp_path / "a.json", {"train_seconds": 60})), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and not (tmp_path / "out.png").exists()
