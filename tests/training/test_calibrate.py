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
from training import calibrate
from training.calibrate import main
from training.data.images import ImageSet, Split
from training.evaluation.calibration_report import table, tolerance_table
from training.evaluation.tolerance import MOST_FLAGGED
from training.networks import checkpoint
from training.networks.baselines import StaticConfig, build_static

ROOT = Path(__file__).resolve().parents[2]
# Version of the model -> its checkpoint, and its calibration's report.
BUNDLED = {
    "3": ("awnet-robust-domains", "calibration-awnet-robust"),
    "4": ("awnet-bounded", "calibration-awnet-bounded"),
}


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
    title = f"# Calibration of {report['setup']['checkpoint']}"
    said = f"{title}\n\n{tolerance_table(report)}\n\n{table(report)}\n"
    assert (tmp_path / "report.md").read_text("utf-8") == said


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


def report_of(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"training/reports/{BUNDLED[version][1]}.json").read_text("utf-8"))
    return found


def test_the_page_of_domains_shows_the_bundled_models_report() -> None:
    """docs/domain.md has the table that the command wrote, and the errors of score and probability."""
    page, report = (ROOT / "docs/domain.md").read_text("utf-8"), report_of("4")
    assert table(report) in page
    for name, errors in report["score_map"].items():
        figures = [errors[what][of] for what in ("brier", "ece") for of in ("score", "probability")]
        assert f"| `{name}` | {' | '.join(f'{figure:.3f}' for figure in figures)} |" in page


def test_the_page_of_the_model_shows_what_each_upper_threshold_costs() -> None:
    """docs/model.md: every share that was compared, and the last row is what the model has; its worst judging kind."""
    page, report = (ROOT / "docs/model.md").read_text("utf-8"), report_of("4")
    attacks = [f"T0 {name} {eps}/255" for name in ("vgg11", "resnet56") for eps in (8, 4)]
    for row in report["tolerances"]:
        worst, shares = row["judging"], [row["pristine"], *(row["t0"][name] for name in attacks)]
        clean, *t0 = (f"{100 * share['adversarial'][0]:.1f}" for share in shares)
        cells = [clean, f"{100 * worst['adversarial'][0]:.1f} ({worst['kind']} {worst['strength']})", *t0]
        assert f" | {' | '.join(cells)} |" in page
    assert report["tolerances"][-1]["thresholds"] == [d["thresholds"]["0.01"] for d in report["domains"]]
    assert worst["adversarial"][0] <= MOST_FLAGGED


def test_the_traffic_that_the_alerts_were_set_by_is_of_the_report() -> None:
    """docs/operations.md: the share of each verdict, of sites that receive an honest kind and of attacks."""
    page, report = (ROOT / "docs/operations.md").read_text("utf-8"), report_of("4")
    kinds = {name: kind["strengths"].get("3") or kind["strengths"]["0"] for name, kind in report["natural"].items()}
    rows = {
        "clean images": (0.0, kinds["pristine"]),
        "5 % of them with speckle noise": (0.05, kinds["speckle_noise"]),
        "5 % of them with dithered palettes": (0.05, kinds["palette_dithered"]),
        "nothing but photographs": (1.0, kinds["photographs"]),
        "nothing but sharpened images": (1.0, kinds["sharpen"]),
        "nothing but images with speckle noise": (1.0, kinds["speckle_noise"]),
        "30 % attacked by a VGG-11 (T0, 8/255)": (0.3, report["attacked"]["T0 vgg11 8/255"]),
        "30 % attacked by a ResNet-56": (0.3, report["attacked"]["T0 resnet56 8/255"]),
    }
    for row, (share, kind) in rows.items():
        mixed = [
            share * kind["flagged"][v][0] + (1 - share) * kinds["pristine"]["flagged"][v][0]
            for v in ("suspicious", "adversarial")
        ]
        assert f"| {row} | {' | '.join(f'{100 * one:.1f}' for one in mixed)} |" in page


def test_version_3_has_the_weights_of_version_2() -> None:
    """Bit for bit: what was new was the calibration."""
    old, new = (checkpoint.read(ROOT / "training/checkpoints" / f"awnet-robust{end}.pt") for end in ("", "-domains"))
    assert old["state"].keys() == new["state"].keys()
    assert all(torch.equal(value, new["state"][name]) for name, value in old["state"].items())


@pytest.mark.parametrize("version", list(BUNDLED))
def test_the_bundled_model_carries_the_calibration_of_its_report(version: str) -> None:
    """The same thresholds, ranges and rates; the report and the recipe that its provenance names are there."""
    report, file = report_of(version), ROOT / f"training/checkpoints/{BUNDLED[version][0]}.pt"
    new = checkpoint.read(file)
    for told, domain in zip(report["domains"], new["calibration"]["domains"], strict=True):
        assert told["thresholds"] == {str(fpr): score for fpr, score in domain["thresholds"].items()}
        assert told["ranges"] == {name: list(ends) for name, ends in domain["ranges"].items()}
        assert told["rates"] == domain["rates"]
    metadata = {p.key: p.value for p in onnx.load(ROOT / f"model_repository/awnet/{version}/model.onnx").metadata_props}
    contract = json.loads(metadata["awnet.contract"])
    assert [domain["rates"] for domain in contract["domains"]] == [told["rates"] for told in report["domains"]]
    provenance = contract["provenance"]
    assert provenance["checkpoint_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    made_by = json.loads((ROOT / provenance["report"]).read_text("utf-8"))
    assert made_by["name"] == provenance["recipe"] and (ROOT / f"training/recipes/{made_by['name']}.toml").exists()
