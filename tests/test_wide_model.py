"""The wide model: its file is what it says, and its page says what its reports say."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from server.engines.repository import Repository
from training.core.files import sha256
from training.networks import checkpoint

ROOT = Path(__file__).resolve().parent.parent
NAME = "awnet-r18"
MODEL = ROOT / "model_repository" / NAME / "1/model.onnx"
CHECKPOINT = ROOT / "training/checkpoints" / f"{NAME}.pt"
REPORTS = ROOT / "training/reports"
PAGE = ROOT / "docs" / f"{NAME}.md"

# Row of the page -> the figure of an audit's part.
AUDITED = {
    "right, nobody attacks": ("clean", "accuracy"),
    "flagged, nobody attacks": ("clean", "fpr"),
    "right, worst case of T1 and T2": ("worst_case@8", "accuracy"),
    "wrong and unflagged, T3": ("T3@8", "sr_at"),
    "right, T0 by VGG-11": ("T0/vgg11/pgd_sat@8", "accuracy"),
    "flagged, T0 by VGG-11": ("T0/vgg11/pgd_sat@8", "tpr"),
}


def tensor(field: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(field["base64"]), field["dtype"]).reshape(field["shape"])


def test_the_file_is_small_and_gives_its_golden_answers_in_every_mode() -> None:
    """At most 26 MB and 13 million parameters; a hash that its manifest knows; three modes, by golden values."""
    artifact = Repository(ROOT / "model_repository").read(NAME, 1)
    assert len(artifact.data) <= 26_000_000
    session = ort.InferenceSession(artifact.data, providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["awnet.contract"])
    assert contract["precision"] == "float16-weights" and contract["mixing"] == {"kind": "norms"}
    outputs = {mode: about["output"] for mode, about in contract["modes"].items()}
    assert outputs == {"auto": "logits", "robust": "logits_adv", "natural": "logits_nat"}
    golden = contract["golden"]
    names = ["p_type", *outputs.values()]
    for name, found in zip(names, session.run(names, {"image": tensor(golden["image"])}), strict=True):
        np.testing.assert_allclose(found, tensor(golden[name]), rtol=0, atol=golden["tolerance"][name])


def test_the_file_is_that_of_the_checkpoint_and_of_its_audit() -> None:
    """One file of weights: exported, audited in both modes, and with the card of the first audit."""
    digest = sha256(CHECKPOINT)
    metadata = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    contract = json.loads(metadata["awnet.contract"])
    audits = {
        name: json.loads((REPORTS / f"audits/{name}/audit.json").read_text()) for name in (NAME, f"{NAME}-robust")
    }
    assert {contract["provenance"]["checkpoint_sha256"], *(a["setup"]["sha256"] for a in audits.values())} == {digest}
    assert contract["card"] == json.loads((REPORTS / f"audits/{NAME}/card.json").read_text())
    assert json.loads((REPORTS / f"{NAME}-attacks.json").read_text())["setup"]["sha256"] == digest
    net = checkpoint.load(CHECKPOINT).awnet
    assert net.config.width == 64 and sum(p.numel() for p in net.parameters()) <= 13_000_000


def test_nothing_loads_it_that_did_not_ask() -> None:
    """The default of the server is another model, and no further one."""
    from server.settings.settings import Settings

    settings = Settings()
    assert settings.model != NAME and NAME not in settings.further_models


def rows(header: str) -> list[list[str]]:
    [table] = re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text("utf-8"), re.MULTILINE)
    return [[cell.strip().replace("*", "") for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def share(part: dict[str, Any], figure: str) -> str:
    value = part[figure] if figure == "accuracy" else part[figure]["0.05"]
    return f"{100 * value:.1f} ({part['images']:,})"


def test_its_page_has_the_figures_of_its_audits() -> None:
    """Every row in both modes, beside the bundled model's; a part that was not run is an empty cell."""
    names = (NAME, f"{NAME}-robust", "awnet-bounded")
    audits = [json.loads((REPORTS / f"audits/{name}/audit.json").read_text())["parts"] for name in names]
    found = rows("| 8/255 |")
    assert {row for row, *_ in found} == set(AUDITED)
    for row, *cells in found:
        part, figure = AUDITED[row]
        assert cells == [share(parts[part], figure) if part in parts else "" for parts in audits], row


def test_its_page_has_the_last_iterates_of_its_report() -> None:
    """The paper's attacks, on the images that the page tells."""
    report = json.loads((REPORTS / f"{NAME}-attacks.json").read_text())
    for attack, accuracy, auroc, _ in rows("| the paper's attack |"):
        part = report["parts"][f"T2/{attack}"]
        assert [accuracy, auroc] == [share(part, "accuracy"), f"{part['auroc']:.4f}"], attack


def test_a_page_with_another_figure_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tables can fail."""
    text = PAGE.read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| right, nobody attacks |"))
    (tmp_path / "page.md").write_text(text.replace(row, re.sub(r"\d\d\.\d", "12.3", row, count=1)))
    monkeypatch.setattr(f"{__name__}.PAGE", tmp_path / "page.md")
    with pytest.raises(AssertionError):
        test_its_page_has_the_figures_of_its_audits()


def test_its_thresholds_are_those_of_its_checkpoint() -> None:
    """Every domain, as its calibration measured it."""
    metadata = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    domains = json.loads(metadata["awnet.contract"])["domains"]
    calibration = torch.load(CHECKPOINT, weights_only=True)["calibration"]
    for domain, measured in zip(domains, calibration["domains"], strict=True):
        thresholds = {point["fpr"]: point["score"] for point in domain["thresholds"].values()}
        assert domain["name"] == measured["name"] and thresholds == measured["thresholds"]
