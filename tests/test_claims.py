"""The figures of the bundled model in README.md and docs/model.md are those of the reports that they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.renames import rename_parts

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "training/reports"

# Row of the main table -> the report and its part.
ATTACKS = {
    "T0, PGD-20 on an adversarially trained VGG-11": ("awnet-robust", "T0/vgg11/pgd_sat"),
    "T0, PGD-20 on a clean ResNet-56": ("awnet-robust", "T0/resnet56/pgd_sat"),
    "T0, PGD-20 on a clean ResNet-18 (full width)": ("awnet-robust-t0-resnet18", "T0/pyautoattack/pgd_sat"),
    "T1, PGD-20, last iterate": ("awnet-robust-whitebox", "T1/pgd_sat"),
    "T2, PGD-20, last iterate": ("awnet-robust-whitebox", "T2/pgd_sat"),
    "T1 and T2, worst case of twelve attacks": ("awnet-robust-worst-case", "worst_case"),
    "T2, AutoAttack (standard), rounded afterwards": ("awnet-robust-autoattack", "T2/autoattack"),
    "T1, FGSM": ("awnet-robust-attacks", "T1/fgsm"),
    "T2, FGSM": ("awnet-robust-attacks", "T2/fgsm"),
    "T1, PGD_trades, 20 steps, last iterate": ("awnet-robust-attacks", "T1/pgd_trades"),
    "T2, PGD_trades, 20 steps, last iterate": ("awnet-robust-attacks", "T2/pgd_trades"),
    "T1, CW_inf, 30 steps, last iterate": ("awnet-robust-attacks", "T1/cw_inf"),
    "T2, CW_inf, 30 steps, last iterate": ("awnet-robust-attacks", "T2/cw_inf"),
}
CORRUPTIONS = {
    "as it is": "unchanged",
    "JPEG, quality 75": "jpeg_75",
    "JPEG, quality 90": "jpeg_90",
    "WebP, quality 80": "webp_80",
    "scaled up four times and back": "scaled_x4_and_back",
    "random sign noise of 8/255": "sign_noise_8",
    "Gaussian noise, sigma 4/255, cut off at 8/255": "gaussian_noise_8",
}
WORST_CASE = ("clean", "T2/pgd_sat", "worst_case")  # columns of that table
# Row of the tables against version 1 -> the ending of its two reports.
VERSIONS = {
    "version 1 (stage C)": "c-joint",
    "version 2 (stage D)": "d-robust",
    "one epoch more of stage D": "e-longer",
    "one epoch more, with weight perturbation (AWP)": "e-awp",
    "seven small steps from version 1, one epoch": "d-small-steps",
}


# The table beside the controls: row -> the audit's part and the figure in it.
AUDITS = {
    "README.md": "awnet-bounded",
    "docs/model.md": "awnet-robust",
}  # the bundled model's, and that of versions 2 and 3
SUBJECTS = {
    "this network": "",
    "static": "static:",
    "static, rejects by confidence": "max_softmax:",
    "static, separate detector": "separate_detector:",
}
BESIDE = {
    "right, nobody attacks": ("clean", "accuracy"),
    "flagged, nobody attacks": ("clean", "fpr"),
    "right, T0 by VGG-11": ("T0/vgg11/pgd_sat@8", "accuracy"),
    "flagged, T0 by VGG-11": ("T0/vgg11/pgd_sat@8", "tpr"),
    "right, worst case of T1 and T2": ("worst_case@8", "accuracy"),
    "right, AutoAttack at T2": ("T2/autoattack@8", "accuracy"),
    "wrong and unflagged, T3": ("T3@8", "sr_at"),
}


# Honest images of the table: row -> kind and strength in the reports of both calibrations; None: the worst at 1 %.
CALIBRATIONS = {
    version: REPORTS / f"calibration-{name}.json" for version, name in ((3, "awnet-robust"), (4, "awnet-bounded"))
}
HONEST = {
    "as they are": ("pristine", "0"),
    "JPEG, quality 75": ("jpeg", "3"),
    "a palette of 256 colours": ("palette", "1"),
    "light x1.3": ("brightness", "3"),
    "sharpened": ("sharpen", "3"),
    "a line of text": ("text", "3"),
    "photographs, cropped at native pixels": ("photographs", "0"),
    "uniform noise within 8 levels": ("uniform_noise", "4"),
    "the worst of 45 kinds at 1 %: dithered palettes of 32 colours": None,
}


def parts(report: str) -> dict[str, Any]:
    return rename_parts(json.loads((REPORTS / f"{report}.json").read_text("utf-8"))["parts"])


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def rows(document: str, header: str) -> list[list[str]]:
    """Cells of every table whose header begins so, without bold and the unit `flagged`."""
    text = (ROOT / document).read_text("utf-8")
    tables = re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    assert lines, f"{document} has no table {header}"
    return [[cell.strip().replace("*", "").replace(" flagged", "") for cell in line.split("|")[1:-1]] for line in lines]


def test_the_table_of_attacks_is_that_of_the_reports() -> None:
    """Every row: images, accuracy, AUROC, TPR at both thresholds, SR@5."""
    for name, *cells in rows("docs/model.md", "| attack (eps 8/255) |"):
        if name == "none":
            part = parts("awnet-robust")["clean"]
            fpr = part["fpr"]
            expected = [
                f"{part['images']:,}",
                percent(part["accuracy"]),
                "",
                percent(fpr["0.05"]),
                percent(fpr["0.01"]),
                "",
            ]
        elif name.startswith("T3"):
            part = parts("awnet-robust-two-gradients" if "two_gradients" in name else "awnet-robust-evasion")["T3"]
            expected = [f"{part['images']:,}", "", "", "", "", percent(part["sr_at"]["0.05"])]
        else:
            report, key = ATTACKS[name]
            part = parts(report)[key]
            tpr = part["tpr"]
            expected = [f"{part['images']:,}", percent(part["accuracy"]), f"{part['auroc']:.4f}"]
            expected += [percent(tpr["0.05"]), percent(tpr["0.01"]), percent(part["sr_at"]["0.05"])]
        assert cells == expected, name


def test_the_sentences_of_the_readme_quote_the_audits() -> None:
    """T3 and the worst case beside the static network, accuracy in both modes."""
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    auto, robust = (audited(name) for name in ("awnet-bounded", "awnet-bounded-robust"))
    evaded, worst, static = auto["T3@8"], auto["worst_case@8"], auto["static:worst_case@8"]
    for part, sentence in (
        (evaded, f"nothing at T3**: {percent(evaded['sr_at']['0.05'])} % of {evaded['images']} images"),
        (static, f"is misled on {percent(1 - static['accuracy'])} % of {static['images']}"),
        (worst, f"leaves {percent(worst['accuracy'])} % of {worst['images']} images right"),
        (static, f"network keeps {percent(static['accuracy'])} %"),
        (
            auto["clean"],
            f"{percent(auto['clean']['accuracy'])} against {percent(auto['static:clean']['accuracy'])} % of 10,000",
        ),
        (robust["clean"], f"right on {percent(robust['clean']['accuracy'])} % of {robust['clean']['images']:,} images"),
        (robust, f"on {percent(robust['worst_case@8']['accuracy'])} % of {robust['worst_case@8']['images']}"),
    ):
        assert sentence in text, (sentence, part)


def audited(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPORTS / f"audits/{name}/audit.json").read_text("utf-8"))["parts"]
    return found


def test_what_evades_version_2_is_the_strongest_evasion_that_was_measured() -> None:
    """Every sentence about T3 quotes the larger report, and the static network beside it its own worst case."""
    text = " ".join((ROOT / "docs/model.md").read_text("utf-8").split())
    success = max(parts(f"awnet-robust-{report}")["T3"]["sr_at"]["0.05"] for report in ("evasion", "two-gradients"))
    said = re.findall(r"(?:T3\*\*:|succeeds on) ([\d.]+) %", text)
    assert set(said) == {percent(success)}
    static = parts("robust-teacher-worst-case")["worst_case"]["accuracy"]
    assert re.findall(r"is misled on ([\d.]+) % of 500", text) == [percent(1 - static)]


def beside(found: dict[str, Any], subject: str, row: str) -> str:
    """A cell of the table beside the controls: per cent and images, of 5 % thresholds; empty where there is none."""
    name, figure = BESIDE[row]
    static = subject == "static:"
    if static and name == "T3@8":  # who never flags is misled wherever it is wrong
        part = found.get("static:worst_case@8")
        return f"{percent(1 - part['accuracy'])} ({part['images']:,})" if part else ""
    classifier = subject if subject == "" or figure != "accuracy" else "static:"  # one classifier in all controls
    part = found.get(f"{classifier}{name}")
    if part is None or figure not in part:
        return ""
    value = part[figure] if figure == "accuracy" else part[figure]["0.05"]
    return f"{percent(value)} ({part['images']:,})"


@pytest.mark.parametrize("document", ["README.md", "docs/model.md"])
def test_the_table_beside_the_controls_is_the_audit_s(document: str) -> None:
    """Every row for the network and each control, judged and attacked alike."""
    found = audited(AUDITS[document])
    for row, *cells in rows(document, "| eps 8/255 |"):
        assert cells == [beside(found, subject, row) for subject in SUBJECTS.values()], row


def natural(row: str) -> list[str]:
    """Cells: flagged at both thresholds, by versions 3 and 4; and which share of version 4's is of a domain."""
    before, now = (json.loads(path.read_text("utf-8"))["natural"] for path in CALIBRATIONS.values())
    if (name := HONEST[row]) is None:
        assert f"the worst of {len(now)} kinds" in row
        found = [
            (part["flagged"]["adversarial"][0], kind, s)
            for kind, k in now.items()
            for s, part in k["strengths"].items()
        ]
        name = max(found)[1:]
        assert name == ("palette_dithered", "5"), "the row is about another kind"
    parts = [found[name[0]]["strengths"][name[1]] for found in (before, now)]
    rates = [[percent(part["flagged"][t][0]) for t in ("suspicious", "adversarial")] for part in parts]
    return [*(" / ".join(one) for one in rates), percent(1 - parts[1]["in"]["none"])]


def test_the_table_of_natural_images_is_that_of_the_calibrations() -> None:
    """Every row, and the worst kind is the worst kind."""
    found = rows("README.md", "| natural images |")
    assert [row for row, *_ in found] == list(HONEST)
    for row, *cells in found:
        assert cells == natural(row), row


def test_the_tables_of_the_model_page_are_those_of_the_reports() -> None:
    """Other attacks, corruptions, and both tables against version 1."""
    for name, accuracy, auroc, tpr, success in rows("docs/model.md", "| other attacks, first 1,000 images |"):
        part = parts(ATTACKS[name][0])[ATTACKS[name][1]]
        shares = [part["accuracy"], part["tpr"]["0.05"], part["sr_at"]["0.05"]]
        assert [accuracy, tpr, success] == [*map(percent, shares)] and auroc == f"{part['auroc']:.4f}", name
    for name, *cells in rows("docs/model.md", "| worst case, first 500 test images |"):
        found = parts(re.findall(r"([\w-]+)\.json", name)[0])
        assert all(found[part]["images"] == 500 for part in WORST_CASE), name
        assert cells == [percent(found[part]["accuracy"]) for part in WORST_CASE], name
    for name, at_5, at_1, accuracy in rows("docs/model.md", "| corruption, validation split |"):
        part = parts("awnet-robust-validation")[f"corruptions/{CORRUPTIONS[name]}"]
        assert [at_5, at_1, accuracy] == [*map(percent, (part["fpr"]["0.05"], part["fpr"]["0.01"], part["accuracy"]))]
    for name, clean, t2, auroc, t3 in rows("docs/model.md", "| | clean | T2, PGD 5 x 50 |"):
        found = parts(f"variants-validation-strong-{VERSIONS[name]}")
        pgd = found["T2/pgd_restarts"]
        shares = [found["clean"]["accuracy"], pgd["accuracy"], found["T3"]["sr_at"]["0.05"]]
        assert [clean, t2, t3] == [*map(percent, shares)] and auroc == f"{pgd['auroc']:.4f}", name
    for name, clean, t1, t2, mean, auroc in rows("docs/model.md", "| | clean | T1 | T2 | mean W-Robust |"):
        found = parts(f"variants-validation-{VERSIONS[name]}")
        first, second = found["T1/pgd_trades"], found["T2/pgd_trades"]
        shares = [found["clean"]["accuracy"], first["accuracy"], second["accuracy"]]
        assert [clean, t1, t2] == [*map(percent, shares)] and auroc == f"{second['auroc']:.4f}", name
        assert abs(float(mean) - 50 * (first["w_robust"] + second["w_robust"])) <= 0.051, name


# Row of the history's table -> the small-scale network.
TRAINED_AGAIN = {
    "AW-Net": "awnet",
    "static, equally many steps": "static",
    "static, equally long training": "static-long",
    "static, separate detector": "static-detector",
}


def test_the_table_of_last_iterates_is_that_of_the_reports() -> None:
    """Both judges of the same weights, those that were trained again."""
    for name, last, worst_case, autoattack in rows("docs/history/last-iterates.md", "| network | PGD_trades |"):
        report = json.loads((REPORTS / f"tables/cifar10/{TRAINED_AGAIN[name]}.json").read_text("utf-8"))
        report = report.get("again", report)
        strong = {attack: found["parts"] for attack, found in report["strong"].items()}
        found = [report["parts"]["T2/pgd_trades"], strong["worst_case"]["worst_case"]]
        found += [strong["autoattack"]["T2/autoattack"]] if "autoattack" in strong else []
        expected = [percent(part["accuracy"]) for part in found]
        assert [last, worst_case, autoattack] == [*expected, ""][:3], name
