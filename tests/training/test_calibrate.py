"""A checkpoint calibrated again by the command: same weights, new domains, a report of what was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from domain.corruptions import CORRUPTIONS
from domain.statistics import STATISTICS
from training import calibrate, checkpoint
from training.baselines import StaticConfig, build_static
from training.calibrate import main
from training.data import ImageSet, Split
from training.evaluation.calibration_report import table, tolerance_table

ROOT = Path(__file__).resolve().parents[2]
REPORT = json.loads((ROOT / "training/reports/calibration-awnet-robust.json").read_text("utf-8"))


def images(n: int) -> Split:
    return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Generated images in place of CIFAR-10, whose files are checked against their official sums."""
    made = ImageSet(train=images(1), validation=images(40), test=images(1), labels=[str(i) for i in range(10)])
    monkeypatch.setattr(calibrate, "load_images", lambda name, data_dir: made)
    return made


@pytest.fixture
def surrogate(tmp_path: Path) -> Path:
    path = tmp_path / "static.pt"
    checkpoint.save(path, checkpoint.pack(build_static(StaticConfig("resnet20", 4)), labels=[], recipe={}))
    return path


def command(ckpt: Path, folder: Path, *more: str) -> list[str]:
    small = ["--images", "10", "--attacked", "8", "--evaded", "4", "--steps", "1"]
    base = ["--ckpt", str(ckpt), "--data-dir", str(folder), "--out", str(folder / "new.pt")]
    return [*base, "--report", str(folder / "report.json"), *small, *more]


@pytest.mark.slow
def test_the_weights_stay_and_the_report_tells_what_was_measured(
    tiny_checkpoint: Path, surrogate: Path, dataset: ImageSet, tmp_path: Path
) -> None:
    """Every corruption at every strength, every attack, before and now; rates with T0; errors of the score map."""
    report = main(command(tiny_checkpoint, tmp_path, "--surrogate", f"s={surrogate}", "--tolerated", "0.05", "0.2"))
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report
    old, new = checkpoint.read(tiny_checkpoint), checkpoint.read(tmp_path / "new.pt")
    assert all(torch.equal(value, new["state"][name]) for name, value in old["state"].items())
    assert {k: v for k, v in old.items() if k not in ("state", "calibration")} == {
        k: v for k, v in new.items() if k not in ("state", "calibration")
    }
    loaded = checkpoint.load(tmp_path / "new.pt").calibration
    assert loaded is not None and [d.name for d in loaded.domains] == ["pristine", "pool"]
    for domain, told in zip(loaded.domains, report["domains"], strict=True):
        assert told["rates"] == domain.rates and set(domain.rates["tpr_t0"]) == {"8", "4"}
        assert domain.rates["tpr_t0"]["8"]["suspicious"][1] <= domain.rates["tpr_t0"]["8"]["suspicious"][0]
        assert {float(fpr): t for fpr, t in told["thresholds"].items()} == domain.thresholds
    assert report["thresholds_before"] == {str(f): t for f, t in old["calibration"]["thresholds"].items()}
    assert [row["tolerated"] for row in report["tolerances"][:-1]] == [[0.05] * 2, [0.2] * 2]
    assert report["tolerances"][-1]["thresholds"] == [domain.thresholds[0.01] for domain in loaded.domains]
    natural = report["natural"]
    assert set(natural) >= {"pristine", "photographs", *CORRUPTIONS} and "cifar100" not in natural
    for name in CORRUPTIONS:
        assert natural[name]["group"] in ("training", "judging") and set(natural[name]["strengths"]) == set("12345")
        for part in natural[name]["strengths"].values():
            assert sum(part["in"].values()) == pytest.approx(1)
    assert set(report["attacked"]) >= {"T0 s 8/255", "T2 2/255", "T1 8/255", "T3 selective_nat 8/255"}
    assert "T0 s 4/255, then brightness" in report["attacked"] and "T2 8/255, then contrast" in report["attacked"]
    assert set(report["statistics"]) == set(STATISTICS)
    assert set(report["score_map"]) == {"pristine", "pool", "served"}
    for errors in report["score_map"].values():
        assert 0 <= errors["brier"]["probability"] <= 1 and 0 <= errors["ece"]["score"] <= 1
    assert str(tmp_path) not in (tmp_path / "report.json").read_text("utf-8")
    assert (tmp_path / "report.md").read_text("utf-8") == f"{tolerance_table(report)}\n\n{table(report)}\n"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["--ckpt", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--images", "3"], "--images must be at least 10"),
        (["--surrogate", "nobody"], "a surrogate is NAME=FILE"),
        (["--ckpt", "static"], "has no detector to calibrate"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--tolerated", "0"], "--tolerated is a share, above 0 and at most 1"),
        (["--tolerated", "0.1", "5"], "--tolerated is a share, above 0 and at most 1"),
        (["--report", "report.md"], "report.md is no .json file"),
        (["--out", "static/new.pt"], "static.pt"),
        (["--report", "static/report.json"], "static.pt"),
        (["--out", "."], "Is a directory"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(
    tiny_checkpoint: Path,
    surrogate: Path,
    dataset: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    complaint: str,
) -> None:
    """Status 2, one sentence, nothing written."""
    monkeypatch.setattr(calibrate, "hostile_images", None)  # all of it is known before the work begins
    arguments = [word.replace("static", str(surrogate)) for word in change]
    with pytest.raises(SystemExit) as ended:
        main([*command(tiny_checkpoint, tmp_path), *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "new.pt").exists() and not (tmp_path / "report.json").exists()


def test_the_table_reads_in_percent() -> None:
    """One row a kind, at its middle strength where it has several; attacks last."""

    def part(before: float, now: float) -> dict[str, Any]:
        points = [{v: [share, 0, 1] for v in ("suspicious", "adversarial")} for share in (before, now)]
        return {"flagged_before": points[0], "flagged": points[1], "in": {"pristine": 0.25, "pool": 0.75, "none": 0.0}}

    report = {
        "domains": [{"name": "pristine"}, {"name": "pool"}],
        "natural": {
            "pristine": {"group": "calibration", "strengths": {"0": part(0.05, 0.049)}},
            "median": {"group": "training", "strengths": {"1": part(1, 1), "3": part(0.6, 0.01)}},
        },
        "attacked": {"T2 8/255": part(1, 1)},
    }
    head, rule, *rows = table(report).splitlines()
    assert head.endswith("| in pristine | in pool | in none |") and rule.count("---") == head.count("|") - 1
    assert rows == [
        "| pristine | calibration | 5.0 / 5.0 | 4.9 / 4.9 | 25 | 75 | 0 |",
        "| median | training | 60.0 / 60.0 | 1.0 / 1.0 | 25 | 75 | 0 |",
        "| T2 8/255 | attack | 100.0 / 100.0 | 100.0 / 100.0 | 25 | 75 | 0 |",
    ]


def test_the_page_of_domains_shows_the_bundled_models_report() -> None:
    """docs/domain.md has the table that the command wrote, and the errors of score and probability."""
    page = (ROOT / "docs/domain.md").read_text("utf-8")
    assert table(REPORT) in page
    for name, errors in REPORT["score_map"].items():
        figures = [errors[what][of] for what in ("brier", "ece") for of in ("score", "probability")]
        assert f"| `{name}` | {' | '.join(f'{figure:.3f}' for figure in figures)} |" in page


def test_the_bundled_model_carries_the_calibration_of_that_report() -> None:
    """The same thresholds, ranges and rates; the weights are those of awnet-robust.pt, bit for bit."""
    old, new = (checkpoint.read(ROOT / "training/checkpoints" / f"awnet-robust{end}.pt") for end in ("", "-domains"))
    assert old["state"].keys() == new["state"].keys()
    assert all(torch.equal(value, new["state"][name]) for name, value in old["state"].items())
    for told, domain in zip(REPORT["domains"], new["calibration"]["domains"], strict=True):
        assert told["thresholds"] == {str(fpr): score for fpr, score in domain["thresholds"].items()}
        assert told["ranges"] == {name: list(ends) for name, ends in domain["ranges"].items()}
        assert told["rates"] == domain["rates"]
    metadata = {p.key: p.value for p in onnx.load(ROOT / "model_repository/awnet/3/model.onnx").metadata_props}
    contract = json.loads(metadata["awnet.contract"])
    assert [domain["rates"] for domain in contract["domains"]] == [told["rates"] for told in REPORT["domains"]]
    sha256 = hashlib.sha256((ROOT / "training/checkpoints/awnet-robust-domains.pt").read_bytes()).hexdigest()
    assert contract["provenance"]["checkpoint_sha256"] == sha256
