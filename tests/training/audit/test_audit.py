"""The audit end to end on generated images and tiny networks: whole, cut short, broken, and refused."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.audit.image_sets import t0_files
from tests.tiny_awnet import write_checkpoint
from training.attacks import evasion
from training.attacks.ascent import Budget
from training.attacks.catalogue import ATTACKS
from training.audit import __main__ as program
from training.audit import groups, linter, parts
from training.data.images import ImageSet, Split
from training.networks import checkpoint
from training.networks.awnet import AWNetConfig
from training.networks.baselines import StaticConfig, build_static

CONFIG = AWNetConfig(width=4, extractor_width=4)


def images(n: int) -> Split:
    return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Eight generated test images in place of CIFAR-10, and attacks of one or two steps."""
    made = ImageSet(train=images(1), validation=images(40), test=images(8), labels=[str(i) for i in range(10)])
    monkeypatch.setattr(program, "load_images", lambda name, data_dir: made)
    for name, (attack, budget) in ATTACKS.items():
        monkeypatch.setitem(ATTACKS, name, (attack, Budget(budget.eps, budget.step, steps=2)))
    monkeypatch.setattr(groups, "STEPS", (1, 2))
    evasions = {name: dataclasses.replace(how, steps=2) for name, how in evasion.EVASIONS.items()}
    monkeypatch.setattr(evasion, "EVASIONS", evasions)
    monkeypatch.setattr(parts, "STATIC_EVASIONS", {"two_gradients": evasions["selective"]})
    monkeypatch.setattr(parts, "shaped", partial(parts.shaped, steps=2))
    monkeypatch.setattr(parts, "WORST_CASE_BUDGET", Budget(steps=2))
    monkeypatch.setattr(groups, "CORRUPTIONS", dict(list(groups.CORRUPTIONS.items())[:2]))
    return made


@pytest.fixture
def awnet(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "awnet.pt", CONFIG)


@pytest.fixture
def static(tmp_path: Path) -> Path:
    path = tmp_path / "static.pt"
    net = build_static(StaticConfig("resnet20", 4))
    checkpoint.save(path, checkpoint.pack(net, labels=[], recipe={}))
    return path


def command(ckpt: Path, out: Path, *more: object) -> list[str]:
    return ["--ckpt", str(ckpt), "--data-dir", "unused", "--out", str(out), "--threads", "1", *map(str, more)]


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "audit.json").read_text())


@pytest.mark.slow
def test_one_command_audits_a_network_and_its_controls(awnet: Path, static: Path, tmp_path: Path) -> None:
    """Every group, for the network and for each control; JSON, Markdown, plots, card and T0 images beside it."""
    out = tmp_path / "audit"
    status = program.main(command(awnet, out, "--static", static, "--surrogate", f"s={static}"))
    document = report(out)
    assert document["failed"] == {} and document["plan"]["left_out"] == []
    names = set(document["parts"])
    for subject in ("", "static:", "max_softmax:", "separate_detector:"):
        assert {f"{subject}clean", f"{subject}worst_case@8", f"{subject}T0/s/pgd_sat@8"} <= names
    assert {"T3@8", "max_softmax:T3@8", "separate_detector:T3@8", "T2/autoattack@8", "static:T2/autoattack@8"} <= names
    assert {"T1/fgsm@8", "T2/adaptive@8", "steps/1@8", "worst_case@64", "T3@2", "reliability/T0"} <= names
    assert {"T1/worst_case@8", "T2/worst_case@8", "pictures/photographs"} <= names
    failing = {f["check"] for f in document["findings"] if f["judged"] and not f["holds"]}
    assert status == (1 if failing else 0)
    text = (out / "audit.md").read_text()
    for word in ("SR@5", "never rejects", "own confidence", "separate detector", "Linter", "implies", *failing):
        assert word in text
    for picture in ("worst_case", "roc", "scores", "risk_coverage", "corruptions", "reliability"):
        assert f"]({picture}.svg)" in text and (out / f"{picture}.png").is_file() and (out / f"{picture}.svg").is_file()
    assert str(tmp_path) not in text + (out / "audit.json").read_text()
    with np.load(out / "t0/s-pgd_sat-8.npz") as kept:
        x_adv, x = kept["images"].astype(int), kept["clean"].astype(int)
        assert kept["images"].dtype == np.uint8 and kept["images"].shape == (8, 3, 32, 32)
        assert kept["labels"].dtype == np.int64 and abs(x_adv - x).max() == 8 and "s/pgd_sat@8" in str(kept["about"])
    assert "s-pgd_sat-8" in {t0.name for t0 in t0_files(out / "t0", size=32, classes=10, limit=8)}
    card = json.loads((out / "card.json").read_text())
    assert card["checkpoint_sha256"] == document["setup"]["sha256"] and card["statement"] in text
    figures = {f["name"]: f for f in card["figures"]}
    assert figures["t3_sr_8"]["value"] == document["parts"]["T3@8"]["sr_at"]["0.05"]
    assert {"static_worst_case_8", "max_softmax_t3_sr_8", "separate_detector_t3_sr_8"} <= figures.keys()
    assert all(f["low"] <= f["value"] <= f["high"] and f["images"] for f in card["figures"])


@pytest.mark.slow
def test_a_mode_is_audited_as_it_answers(awnet: Path, tmp_path: Path) -> None:
    """Mode robust: the same scores, no branch that cannot answer among its attackers; card and report
    name the mode, and the same folder refuses another one."""
    parts_of = {}
    for mode in ("auto", "robust"):
        program.main(command(awnet, tmp_path / mode, "--mode", mode, *GROUPS))
        parts_of[mode] = report(tmp_path / mode)["parts"]
    auto, robust = parts_of["auto"], parts_of["robust"]
    assert robust["clean"]["fpr"] == auto["clean"]["fpr"] and robust["clean"]["histogram"] == auto["clean"]["histogram"]
    assert {"nat_ce", "T1_ce"} <= auto["worst_case@8"]["broken_first_by"].keys()
    assert not {"nat_ce", "half_ce"} & robust["worst_case@8"]["broken_first_by"].keys()
    assert {"selective_nat", "growing_nat"} <= auto["T3@8"]["broken_first_by"].keys()
    assert not {"selective_nat", "growing_nat"} & robust["T3@8"]["broken_first_by"].keys()
    card = json.loads((tmp_path / "robust/card.json").read_text())
    assert card["title"] == "Audit of awnet.pt, mode robust"
    assert (tmp_path / "robust/audit.md").read_text().startswith("# Audit of awnet.pt, mode robust\n")
    with pytest.raises(SystemExit):
        program.main(command(awnet, tmp_path / "robust", *GROUPS))


@pytest.mark.slow
def test_a_static_network_has_one_mode(static: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(command(static, tmp_path / "out", "--mode", "robust"))
    assert "needs a network with a detector" in capsys.readouterr().err


GROUPS = ("--parts", "clean", "worst_case", "evasion", "gradients")


@pytest.mark.slow
def test_the_page_about_the_audit_names_every_group_and_every_check(awnet: Path, static: Path, tmp_path: Path) -> None:
    """What the report's last table and the linter say can be looked up."""
    page = (Path(__file__).resolve().parents[3] / "docs/audit.md").read_text("utf-8")
    out = tmp_path / "audit"
    given = ["--static", static, "--surrogate", f"s={static}", "--onnx", static, "--budget", "0.0001"]
    program.main(command(awnet, out, *given))
    names = {name.rpartition(":")[2] for name in report(out)["plan"]["groups"]}
    assert len(names) >= 18 and [name for name in names if f"`{name}`" not in page] == []
    assert [check for check in linter.ADVICE if f"| {check} |" not in page] == []


@pytest.mark.slow
def test_a_static_network_alone_has_the_levels_that_make_sense(static: Path, tmp_path: Path) -> None:
    """No T1 and no T3 of its own; what it does when it rejects by its own confidence stands beside it."""
    out = tmp_path / "audit"
    program.main(command(static, out, "--parts", "clean", "worst_case", "max_softmax", "paper"))
    names = set(report(out)["parts"])
    assert {"clean", "worst_case@8", "max_softmax:worst_case@8", "max_softmax:T3@8", "T2/pgd_sat@8"} <= names
    assert not any(n.startswith(("T1/", "T3", "separate_detector")) or n == "T2/adaptive@8" for n in names)


@pytest.mark.slow
def test_an_interrupted_audit_ends_like_an_uninterrupted_one(
    awnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a part: the same command goes on, measures no new plan, and comes to the same figures."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    program.main(command(awnet, whole, *GROUPS))
    real = parts.best_case

    def stopped(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "best_case", stopped)
    with pytest.raises(KeyboardInterrupt):
        program.main(command(awnet, cut, *GROUPS))
    assert set(report(cut)["parts"]) == {"clean", "worst_case@8"}
    monkeypatch.setattr(parts, "best_case", real)
    monkeypatch.setattr(program, "plan", None)
    program.main(command(awnet, cut, *GROUPS))

    def figures(out: Path) -> dict[str, Any]:
        return {n: {k: v for k, v in p.items() if k != "seconds"} for n, p in report(out)["parts"].items()}

    assert figures(cut) == figures(whole)


@pytest.mark.slow
def test_a_part_that_fails_stops_nothing_and_is_named(
    awnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, its name in the report and on stderr; the next run tries it again."""

    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no such gradient")

    out = tmp_path / "audit"
    with monkeypatch.context() as patched:
        patched.setattr(parts, "best_case", broken)
        assert program.main(command(awnet, out, *GROUPS)) == 1
    assert report(out)["failed"] == {"T3@8": "RuntimeError: no such gradient"}
    assert "zero_gradients" in report(out)["parts"] and "T3@8" in (out / "audit.md").read_text()
    assert "failed: T3@8: RuntimeError: no such gradient" in capsys.readouterr().err
    program.main(command(awnet, out, *GROUPS))
    assert report(out)["failed"] == {} and "T3@8" in report(out)["parts"]


@pytest.mark.slow
def test_a_budget_that_is_too_small_is_kept_and_the_report_says_what_it_cost(awnet: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    program.main(command(awnet, out, "--budget", "0.0001"))
    assert set(report(out)["parts"]) == {"clean"}
    assert "worst_case" in report(out)["plan"]["left_out"]
    assert "Left out, the budget was too small" in (out / "audit.md").read_text()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--ckpt", "nothing.pt"], "no checkpoint at nothing.pt"),
        (["--ckpt", "{text}"], "not a readable checkpoint"),
        (["--static", "{awnet}"], "without a detector"),
        (["--detector", "{static}"], "with a detector"),
        (["--surrogate", "vgg"], "NAME=FILE"),
        (["--budget", "0"], "positive"),
        (["--budget", "inf"], "infinite"),
        (["--budget", "nan"], "positive"),
        (["--threads", "-1"], "positive"),
        (["--parts", "everything"], "no group everything"),
        (["--out", "{text}"], "text"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_audited_is_one_line_and_exit_status_2(
    more: list[str], word: str, awnet: Path, static: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    known = {"awnet": awnet, "static": static, "text": text}
    given = command(awnet, tmp_path / "audit", "--limit", 2) + [m.format(**known) for m in more]
    with pytest.raises(SystemExit) as stopped:
        program.main(given)
    assert stopped.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and word in error[0]
    assert not (tmp_path / "audit/audit.json").exists()


@pytest.mark.slow
def test_images_of_another_surrogate_or_control_are_not_taken_for_these(
    awnet: Path, static: Path, tmp_path: Path
) -> None:
    """--fresh leaves the images of the audit before in the folder, and parts of one name are of other networks."""
    other, out, alone = tmp_path / "other.pt", tmp_path / "audit", tmp_path / "alone"
    checkpoint.save(other, checkpoint.pack(build_static(StaticConfig("resnet20", 4)), labels=[], recipe={}))

    def audited(folder: Path, net: Path, *more: str) -> list[np.ndarray]:
        given = command(
            awnet, folder, "--static", net, "--surrogate", f"s={net}", "--parts", "clean", "transfer", "static"
        )
        program.main([*given, *more])
        files = ("t0/s-pgd_sat-8.npz", "adversarial/static-worst_case-8.npz")
        return [np.load(folder / file)["images"] for file in files]

    before, after, right = audited(out, static), audited(out, other, "--fresh"), audited(alone, other)
    assert [np.array_equal(*pair) for pair in zip(after, right, strict=True)] == [True, True]
    assert not np.array_equal(before[0], after[0])


@pytest.mark.slow
def test_figures_rest_on_no_images_of_another_audit(awnet: Path, static: Path, tmp_path: Path) -> None:
    """Reliability takes the images that earlier parts made; where those were not run it fails and says so."""
    out = tmp_path / "audit"
    program.main(command(static, out, "--parts", "clean", "worst_case"))
    assert program.main(command(awnet, out, "--parts", "clean", "reliability", "--fresh")) == 1
    assert "reliability/T2" in report(out)["failed"]


@pytest.mark.slow
def test_another_network_in_the_same_folder_is_refused(awnet: Path, static: Path, tmp_path: Path) -> None:
    """Figures of two networks never mix; --fresh replaces the report."""
    out = tmp_path / "audit"
    program.main(command(awnet, out, "--parts", "clean"))
    with pytest.raises(SystemExit) as stopped:
        program.main(command(static, out, "--parts", "clean"))
    assert stopped.value.code == 2 and report(out)["setup"]["kind"] == "awnet"
    program.main(command(static, out, "--parts", "clean", "--fresh"))
    assert report(out)["setup"]["kind"] == "static"


def test_a_missing_data_set_is_called_left_out_and_not_finished() -> None:
    """Pictures from elsewhere are optional; who reads the progress learns which were not there."""
    assert program.words({"missing": True}) == "left out, the data set is not in --data-dir"
    assert program.words({}) == "finished"
