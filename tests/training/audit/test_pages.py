"""Model card and threat model say what the audits say, and nothing from elsewhere."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.audit import card, linter, pages
from training.evaluation.report import to_hex

ROOT = Path(__file__).resolve().parents[3]
AUDITS = ROOT / "training/reports/audits"


def attacked(accuracy: float, success: float, images: int = 200, flagged: float = 0.5) -> dict[str, Any]:
    shares = (("correct_bits", accuracy), ("evaded_bits", success))
    bits = {key: to_hex(torch.arange(images) < share * images) for key, share in shares}
    rates = {key: {"0.05": v, "0.01": v} for key, v in (("tpr", flagged), ("sr_at", success))}
    return {"images": images, "accuracy": accuracy, "auroc": 0.9, "auroc_interval": [0.8, 0.95], **rates, **bits}


DOCUMENT: dict[str, Any] = {
    "setup": {
        "checkpoint": "best.pt",
        "sha256": "ab" * 32,
        "kind": "awnet",
        "recipe": "d-robust",
        "parameters": 900_000,
        "labels": ["cat", "dog"],
        "image_size": 32,
        "set": "cifar10",
        "eps": 8.0,
    },
    "plan": {"date": "2026-01-31"},
    "parts": {
        "clean": {"images": 1000, "accuracy": 0.875, "fpr": {"0.05": 0.048, "0.01": 0.01}},
        "worst_case@8": attacked(0.135, 0.125),
        "T0/vgg/pgd_sat@8": attacked(0.64, 0.004, flagged=0.985),
        "T0/late/pgd_sat@8": attacked(0.7, 0.004, flagged=0.999),
        "T3@8": attacked(0.1, 0.905),
        "static:clean": {"images": 1000, "accuracy": 0.75},
        "static:worst_case@8": attacked(0.36, 0.64),
        "max_softmax:T3@8": attacked(0.36, 0.63),
        "corruptions/noise/1": {"images": 500, "accuracy": 0.8, "fpr": {"0.05": 0.2}},
        "corruptions/noise/5": {"images": 500, "accuracy": 0.5, "fpr": {"0.05": 0.99}},
        "corruptions/jpeg/1": {"images": 500, "accuracy": 0.8, "fpr": {"0.05": 0.04}},
        "pictures/tiny_imagenet": {"missing": True},
    },
    "findings": [],
    "failed": {},
}


def failing(document: dict[str, Any]) -> dict[str, Any]:
    finding = linter.Finding(linter.T2_WEAKER, False, "T2 0.4, T1 0.2", linter.ADVICE[linter.T2_WEAKER])
    return copy.deepcopy(document) | {"findings": [finding.document()]}


def test_the_card_has_the_figures_of_the_audit_with_their_intervals() -> None:
    text = pages.model_card(DOCUMENT, Path("reports/model"))
    for words in (
        "The detector pays nothing at T3: 90.5 % of 200 images are misclassified and not flagged",
        "where the static network that rejects by its own confidence is misled on 63.0 %",
        "`training/checkpoints/best.pt`, sha256 `abababababab...`",
        "AW-Net, 0.9 million parameters",
        "| nobody attacks | 1000 | 87.5 (85.3-89.4) | 4.8 |",
        "| **T1 and T2, worst case** | 200 | 13.5 (9.4-18.9) | 50.0 | 12.5 (8.6-17.8) | 87.5 |",
        "| noise | 500 | 99.0 (97.7-99.6) |",
        "the worst of 2 kinds",
        "The linter found no sign",
    ):
        assert words in text
    assert text.index("| noise |") < text.index("| jpeg |")


def test_the_threat_model_says_for_each_level_what_to_rely_on() -> None:
    """The weakest surrogate's figure counts at T0; controls and the other audits stand beside it."""
    other = failing(DOCUMENT)
    text = pages.threat_model({"model": DOCUMENT, "other": other}, "model", Path("reports"))
    for words in (
        "98.5 (95.7-99.5) % flagged, the least of 2 surrogates; 64.0 % right",
        "| T3 | the whole network | a wrong class *and* the verdict `clean` | 90.5 (85.6-93.8) % misclassified",
        "**Control: static network, never rejects**",
        "Tried were transfer from other networks, the worst case over T1, T2 and forced branches, at T3 every evasion",
        "| [other](../reports/other/audit.md) | 87.5 (85.3-89.4) | 13.5 (9.4-18.9) | 90.5 (85.6-93.8) | The linter ",
    ):
        assert words in text


def test_the_threat_model_says_what_a_failing_check_means() -> None:
    """Figures and advice of each, and a link to the report, so that nobody has to look them up."""
    assert "- **" not in pages.threat_model({"model": DOCUMENT}, "model", Path("reports")).split("## Whether")[1]
    text = pages.threat_model({"model": failing(DOCUMENT)}, "model", Path("reports"))
    assert f"- **T2 leaves more than T1**: T2 0.4, T1 0.2. {linter.ADVICE[linter.T2_WEAKER]}" in text
    assert "[The report](../reports/model/audit.md)" in text


def test_other_modes_of_the_same_checkpoint_stand_on_its_card() -> None:
    """By the checksum; the score is the same, so that false positives are told once. Another network's mode is not."""
    robust = copy.deepcopy(DOCUMENT)
    robust["setup"]["mode"] = "robust"
    robust["parts"]["worst_case@8"] = attacked(0.335, 0.2)
    other = copy.deepcopy(robust)
    other["setup"]["sha256"] = "cd" * 32
    audits = {"model": DOCUMENT, "model-robust": robust, "other-robust": other}
    made = pages.pages(audits, "model", Path("reports"))
    text = made["model-card.md"].split("## In mode robust")[1]
    assert "[model-robust](../reports/model-robust/audit.md)" in text and "| 200 | 33.5 (27.3-40.3) |" in text
    assert "other-robust" not in text
    assert "| [other-robust](../reports/other-robust/audit.md), mode robust |" in made["threat-model.md"]


def test_attacks_of_other_shapes_are_told_as_a_server_answers_them() -> None:
    """A patch leaves the first domain: what counts is SR by the thresholds that are applied then, and the warning."""
    document = copy.deepcopy(DOCUMENT)
    patch = attacked(0.5, 0.125) | {"served_sr": {"0.05": 0.5}, "uncalibrated": 0.965}
    document["parts"] |= {"l2@0.5": attacked(0.2, 0.7), "patch@5": patch}
    text = pages.threat_model({"model": document}, "model", Path("reports"))
    assert "moved by 0.5 in L2 (pixel values from 0 to 1), 70.0 (63.3-75.9) %; a square of side 5 painted over" in text
    assert "painted over, 50.0 (43.1-56.9) %, 96.5 % `calibrated: false`." in text


def test_a_detector_that_pays_is_told_to() -> None:
    """Against a control that is misled on more images; the linter's findings are named on the card."""
    document = failing(DOCUMENT)
    document["parts"]["T3@8"] = attacked(0.5, 0.40)
    text = pages.model_card(document, Path("reports/model"))
    assert "The detector pays 23.0 points at T3" in text and "The linter fails it: T2 leaves more than T1." in text


def test_the_program_writes_both_pages_and_refuses_what_is_no_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audits = tmp_path / "audits"
    (audits / "model").mkdir(parents=True)
    given = ["--audits", str(audits), "--out", str(tmp_path), "--model", "model"]
    for text, error in ((None, "no */audit.json"), ("{}", "not a report"), ("no json", "not a report")):
        if text is not None:
            (audits / "model/audit.json").write_text(text)
        with pytest.raises(SystemExit) as stopped:
            pages.main(given)
        assert stopped.value.code == 2 and error in capsys.readouterr().err
    (audits / "model/audit.json").write_text(json.dumps(DOCUMENT))
    with pytest.raises(SystemExit):
        pages.main([*given[:-1], "another"])
    assert "no audit of another" in capsys.readouterr().err
    assert pages.main(given) == 0
    assert (tmp_path / "model-card.md").read_text() == pages.model_card(DOCUMENT, audits / "model")
    assert (tmp_path / "threat-model.md").is_file()


@pytest.mark.parametrize("name", ["model-card.md", "threat-model.md"])
def test_the_pages_of_this_repository_are_made_from_its_audits(name: str) -> None:
    made = pages.pages(pages.read(AUDITS), pages.MODEL, AUDITS.relative_to(ROOT))
    assert (ROOT / "docs" / name).read_text("utf-8") == made[name]


def test_the_document_lists_every_group_of_parts() -> None:
    """Whoever gives --parts finds their names before there is a report."""
    section = (ROOT / "docs/audit.md").read_text("utf-8").partition("### The groups of parts")[2].partition("\n### ")[0]
    plans = [json.loads(file.read_text("utf-8"))["plan"] for file in AUDITS.glob("*/audit.json")]
    assert plans and all(f"`{name}`" in section for plan in plans for name in (*plan["groups"], *plan["left_out"]))


@pytest.mark.parametrize("detects", [True, False])
def test_a_detector_that_nobody_tried_to_evade_is_not_called_absent(detects: bool) -> None:
    """An audit whose budget left out T3 says so; only a static network has no detector."""
    worst = attacked(0.3, 0.1)
    if not detects:
        worst = {key: worst[key] for key in ("images", "accuracy", "correct_bits")}
    said = card.statement({"worst_case@8": worst})
    assert ("nobody tried to evade the detector (T3)" in said) is detects
    assert ("there is no detector to evade" in said) is not detects
