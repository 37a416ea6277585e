"""Rows at the paper's width: every figure is its report's, and stands beside the judges whose verdict counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training.reproduction import claims, tables
from training.reproduction.full_width import REPORTS, full_width, read
from training.reproduction.tables import read_paper

ROOT = Path(__file__).parents[3]
RUN = REPORTS / "gpu-2026-11-28-first-run.json"


def test_every_row_says_what_differs_and_what_the_judges_say() -> None:
    """A last iterate of ours never stands alone beside a number of the paper."""
    rows = full_width()
    assert {(r["table"], r["row"], r["attack"]) for r in rows if r["network"] == "awnet-w64"} == {
        *(("1", "awnet", attack) for attack in ("fgsm", "pgd_sat", "pgd_trades", "cw_inf")),
        *(("4", "awnet-beta1", attack) for attack in ("pgd_sat", "cw_inf")),
    }
    for row in rows:
        assert row["differs"] and row["strong"]["worst_case"] and row["ours"], row["network"]
        assert list(row["paper"].values()) == read_paper()[row["table"]]["cifar10"][row["attack"]][row["row"]]


def test_a_row_has_the_figures_of_its_report() -> None:
    """Of the report that is named first where several have a part, in per cent, with the interval of its images."""
    [row] = [r for r in full_width() if (r["network"], r["table"], r["attack"]) == ("awnet-w64", "4", "cw_inf")]
    parts = json.loads(RUN.read_text())["parts"]
    assert row["images"] == parts["T2/cw_inf"]["images"] == 10_000
    assert row["ours"]["natural"]["value"] == pytest.approx(100 * parts["clean"]["accuracy"])
    assert row["ours"]["adversarial"]["value"] == pytest.approx(44.2)
    assert row["ours"]["w_robust"]["value"] == pytest.approx((91.88 + 44.2) / 2)
    low, high = row["ours"]["adversarial"]["low"], row["ours"]["adversarial"]["high"]
    assert 43.2 < low < 44.2 < high < 45.2
    assert row["strong"]["autoattack"]["images"] == 500 and row["strong"]["worst_case"]["images"] == 82


def test_natural_accuracy_has_the_interval_of_its_own_images() -> None:
    """Where more images were only classified than attacked."""
    [row] = [r for r in full_width() if (r["network"], r["table"], r["attack"]) == ("awnet-r18", "1", "pgd_sat")]
    clean = json.loads((REPORTS / "audits/awnet-r18/audit.json").read_text())["parts"]["clean"]
    natural, adversarial = row["ours"]["natural"], row["ours"]["adversarial"]
    assert natural["value"] == pytest.approx(100 * clean["accuracy"]) and clean["images"] > row["images"]
    assert natural["high"] - natural["low"] < 0.5 * (adversarial["high"] - adversarial["low"])


def test_every_report_of_a_row_is_there() -> None:
    """And its tables are tables of the paper."""
    for network in read():
        assert [report for report in network.reports if not (REPORTS / report).is_file()] == []
        assert set(network.rows) <= set(read_paper())


def test_the_ledger_is_made_again_of_the_reports_that_are_kept(tmp_path: Path) -> None:
    """Without any run: the published page and the published ledger come out as they are."""
    kept = ROOT / "training/reports/tables"
    (tmp_path / "cifar10").symlink_to(kept / "cifar10")
    for other in ("cifar100", "tiny"):
        (tmp_path / other).symlink_to(kept / other)
    page = tmp_path / "page.md"
    published = (ROOT / "docs/reproduction.md").read_text()
    page.write_text(re.sub(rf"{claims.BEGIN}.*{claims.END}", f"{claims.BEGIN}{claims.END}", published, flags=re.DOTALL))
    assert claims.main(["--kept", "--out", str(tmp_path), "--page", str(page)]) == 0
    assert page.read_text() == published
    assert json.loads((tmp_path / "ledger.json").read_text()) == json.loads((kept / "ledger.json").read_text())


def test_no_kept_report_makes_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped --out is an error, not a ledger of nothing."""
    nothing = tmp_path / "nothing"
    assert claims.main(["--kept", "--out", str(nothing)]) == tables.main(
        ["--table", "1", "--kept", "--out", str(nothing)]
    )
    assert capsys.readouterr().err.startswith(f"error: {nothing}") and not nothing.exists()


def test_the_report_for_people_has_the_figures_of_the_one_for_programs() -> None:
    """Both tables of attacks, row by row."""
    report = json.loads(RUN.read_text())
    text = RUN.with_suffix(".md").read_text()

    def cells(header: str) -> list[list[str]]:
        [table] = re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

    def percent(share: float | None, digits: int = 2) -> str:
        return "" if share is None else f"{100 * share:.{digits}f}"

    found = cells("| attack, 8/255 |")
    assert {name for name, *_ in found} == set(report["parts"])
    for name, *rest in found:
        part = report["parts"][name]
        rate = part.get("tpr", part.get("fpr", {})).get("0.05")
        auroc = f"{part['auroc']:.4f}" if "auroc" in part else ""
        expected = [f"{part['images']:,}", percent(part.get("accuracy")), auroc, percent(rate, 1)]
        assert rest == [*expected, percent(part.get("sr_at", {}).get("0.05"), 1)], name
    for name, *rest in cells("| alone |"):
        parts = report["static"] if name == "static" else report["branches"][name]
        of = ("clean", "T2/pgd_sat", "T2/pgd_trades", "T2/cw_inf", "T2/autoattack")
        assert rest == [percent(parts.get(one, {}).get("accuracy")) for one in of], name
