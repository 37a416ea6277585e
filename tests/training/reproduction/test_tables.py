"""The paper's tables: networks made in order and once, honest intervals, verdicts that follow from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.waiting import eventually
from training import evaluate
from training.attacks.ascent import Budget
from training.data.images import ImageSet, Split
from training.evaluation.report import to_hex
from training.reproduction import claims, sweep, tables
from training.reproduction.claims import Claim, judge, verdict_on
from training.reproduction.results import FinishedRun, Results, binomial, merged, student
from training.reproduction.sweep import Specification, SpecificationError
from training.reproduction.tables import build_table, read_paper

ROOT = Path(__file__).parents[3]
SMALL = """
[scale]
name = "tiny"
about = "A rehearsal."
set = ["data.train_images=32", "optim.epochs=1", "optim.batch_size=16", "attack.steps=1", "validate.images=8",
       "network.width=4", "data.padding=0", "validate.attack_steps=1"]
[judge]
limit = 8
batch_size = 8
static = { levels = ["T2"], attacks = ["fgsm"] }
awnet = { levels = ["T1", "T2"], attacks = ["fgsm"] }
[strong]
worst_case = { attacks = ["fgsm", "worst_case"], limit = 4, batch_size = 4 }
[given.cifar10]
[surrogate]
cifar10 = "trunk"
[networks.cifar10.trunk]
recipe = "tables/trunk"
set = ["validate.attack_steps=0"]
seeds = 2
judge = false
[networks.cifar10.detector]
recipe = "tables/detector"
set = ["network.extractor_width=4"]
seeds = 2
judge = false
[networks.cifar10.static]
recipe = "tables/static"
set = ["objective.nat_teacher=trunk/best.pt", "objective.adv_teacher=trunk/best.pt"]
levels = ["T0", "T2"]
[networks.cifar10.awnet]
recipe = "tables/awnet-trades"
set = ["network.extractor_width=4"]
seeds = 2
strong = true
"""


@pytest.fixture
def specification(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, 10, (n,), generator=generator))

    one = ImageSet(split(64), split(16), split(16), [f"class {i}" for i in range(10)])
    for module in (sweep, evaluate):
        monkeypatch.setattr(module, "load_images", lambda name, data_dir: one)
    monkeypatch.setattr(evaluate, "WORST_CASE_BUDGET", Budget(steps=2))


@pytest.mark.slow
def test_networks_are_made_after_what_they_need_and_only_once(
    specification: Path, data: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever order they stand in; a second call finds everything done, and another recipe is refused."""
    spec = Specification.read(specification)
    wanted = [n for n in spec.networks if ".s" not in n.name]
    runs = tmp_path / "runs"
    assert sweep.work(spec, wanted[::-1], tmp_path, runs) == 0
    assert all(sweep.done(n, runs) for n in wanted)
    made = {n.name: (runs / n.title / "done.json").stat().st_mtime_ns for n in wanted}
    assert made["trunk"] < made["detector"] < made["awnet"] and made["trunk"] < made["static"]
    assert sweep.work(spec, wanted, tmp_path, runs) == 0
    assert made == {n.name: (runs / n.title / "done.json").stat().st_mtime_ns for n in wanted}
    parts = json.loads((runs / "cifar10/awnet/report.json").read_text())["parts"]
    assert {"clean", "T1/fgsm", "T2/fgsm"} <= parts.keys()
    assert "T0/surrogate/fgsm" in json.loads((runs / "cifar10/static/report.json").read_text())["parts"]
    strong = json.loads((runs / "cifar10/awnet/worst_case.json").read_text())
    assert {"clean", "T2/fgsm", "worst_case"} <= strong["parts"].keys() and strong["setup"]["images"] == 4
    assert not (runs / "cifar10/static/worst_case.json").exists()
    assert "under way" not in sweep.listing(spec, runs) and "cifar10/awnet.s1" in sweep.listing(spec, runs)

    specification.write_text(SMALL.replace("optim.epochs=1", "optim.epochs=2"))
    with pytest.raises(SpecificationError, match="another recipe"):
        sweep.done(Specification.read(specification).networks[0], runs)

    out = tmp_path / "out"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    specification.write_text(SMALL)
    options = ["--spec", str(specification), "--runs", str(runs), "--out", str(out)]
    assert tables.main(["--table", "all", *options]) == 0
    assert claims.main([*options, "--page", str(page)]) == 0
    assert sorted(p.name for p in out.glob("table-*.png")) == [f"table-{n}.png" for n in range(1, 8)]
    rows = json.loads((out / "table-1.json").read_text())["rows"]
    done = [r for r in rows if r["verdict"] == "undecided"]
    assert {(r["network"], r["attack"]) for r in done} == {("awnet", "fgsm")}
    assert done[0]["strong"]["worst_case"]["images"] == 4 and done[0]["strong"]["worst_case"]["seeds"] == 1
    assert (out / done[0]["reports"][0]).is_file()
    other = tmp_path / "other.md"
    other.write_text("a page")  # without the ledger's place: refused before anything is written
    nowhere = ["--spec", str(specification), "--runs", str(runs), "--out", str(tmp_path / "nowhere")]
    assert claims.main([*nowhere, "--page", str(other)]) == 2
    assert other.read_text() == "a page" and not (tmp_path / "nowhere").exists()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "not tried" in text

    # The old command writes the same files, and says in one line what it is now.
    again = tmp_path / "again"
    page.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    capsys.readouterr()
    options = ["--spec", str(specification), "--runs", str(runs), "--out", str(again)]
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--table", "all", *options, "--page", str(page)])
    (said,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 0 and "python -m training.reproduction.claims" in said
    assert page.read_text() == text
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "nothing finished"])
def test_runs_in_which_nothing_is_finished_change_no_ledger(
    made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped --runs is an error that names it, and the published page and tables stay as they were."""
    page, out, runs = tmp_path / "page.md", tmp_path / "out", tmp_path / "none"
    page.write_text(published := f"{claims.BEGIN}\nwhat was found\n{claims.END}\n")
    if made:
        runs.mkdir()
    options = ["--runs", str(runs), "--out", str(out)]
    assert claims.main([*options, "--page", str(page)]) == tables.main(["--table", "all", *options]) == 2
    for said in capsys.readouterr().err.splitlines():
        assert said.startswith(f"error: --runs {runs}")
    assert page.read_text() == published and not out.exists()


def test_listing_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not where there are no runs, which it says, nor where there are."""
    runs = tmp_path / "none"
    assert sweep.main(["--list", "--runs", str(runs)]) == 0
    said = capsys.readouterr()
    assert f"{runs} is not there" in said.err and "cifar10/awnet " in said.out and not runs.exists()
    runs.mkdir()
    assert sweep.main(["--list", "--runs", str(runs)]) == 0
    assert capsys.readouterr().err == "" and list(runs.iterdir()) == []


@pytest.mark.slow
def test_a_trained_network_is_judged_again_without_being_trained_again(
    specification: Path, data: None, tmp_path: Path
) -> None:
    """Runs from before an attack at full strength was asked for get its report, and keep what they have."""
    specification.write_text(SMALL.replace("strong = true", ""))
    before, runs = Specification.read(specification), tmp_path / "runs"
    assert sweep.work(before, [n for n in before.networks if ".s" not in n.name], tmp_path, runs) == 0
    specification.write_text(SMALL)
    spec = Specification.read(specification)
    (awnet,) = [n for n in spec.networks if n.name == "awnet"]
    kept = {file: file.stat().st_mtime_ns for file in (runs / "cifar10").rglob("*") if file.suffix in (".json", ".pt")}
    assert sweep.done(awnet, runs) and not sweep.complete(awnet, runs)
    assert "worst_case open" in sweep.listing(spec, runs)
    assert sweep.work(spec, [awnet], tmp_path, runs) == 0
    assert sweep.complete(awnet, runs) and {f: f.stat().st_mtime_ns for f in kept} == kept
    worst_case = runs / "cifar10/awnet/worst_case.json"
    made = worst_case.stat().st_mtime_ns
    assert sweep.work(spec, [awnet], tmp_path, runs) == 0 and worst_case.stat().st_mtime_ns == made
    report = json.loads(worst_case.read_text())
    del report["parts"]["worst_case"]  # killed within: what is missing is made
    worst_case.write_text(json.dumps(report))
    assert not sweep.complete(awnet, runs) and sweep.work(spec, [awnet], tmp_path, runs) == 0
    assert sweep.complete(awnet, runs)


@pytest.mark.slow
def test_a_network_that_fails_costs_only_those_that_need_it(specification: Path, data: None, tmp_path: Path) -> None:
    """The others are made, and the program says so by its status."""
    broken = SMALL.replace(
        '"objective.adv_teacher=trunk/best.pt"', '"objective.adv_teacher=trunk/best.pt", "optim.lr=1e30"'
    )
    specification.write_text(broken)
    spec = Specification.read(specification)
    wanted = [n for n in spec.networks if n.name in ("trunk", "detector", "static", "awnet")]
    assert sweep.work(spec, wanted, tmp_path, tmp_path / "runs") == 1
    assert [n.name for n in wanted if not sweep.done(n, tmp_path / "runs")] == ["static"]


@pytest.mark.process
def test_two_of_them_never_work_on_the_same_network(tmp_path: Path) -> None:
    """A claim holds across processes and ends with the process that made it, even by SIGKILL."""
    program = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
    program += "from training.reproduction import sweep\n"
    program += f"with sweep.claimed(Path({str(tmp_path)!r})) as mine:\n print(mine, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with sweep.claimed(tmp_path) as mine:
            assert not mine
        os.kill(other.pid, signal.SIGKILL)
        other.wait()

    def claimed() -> bool:
        with sweep.claimed(tmp_path) as mine:
            return mine

    eventually(claimed)


def test_a_seed_follows_its_own_stages(specification: Path) -> None:
    """Seed 1 of a network starts from seed 1 of its stages; what has one seed is shared; later seeds come last."""
    networks = {n.name: n for n in Specification.read(specification).networks}
    assert list(networks) == ["trunk", "detector", "static", "awnet", "trunk.s1", "detector.s1", "awnet.s1"]
    assert networks["awnet.s1"].recipe["init"] == {"trunk": "trunk.s1/best.pt", "detector": "detector.s1/best.pt"}
    assert networks["awnet.s1"].recipe["data"]["seed"] == networks["awnet"].recipe["data"]["seed"] + 1
    assert networks["static"].needs == ["trunk", "trunk", "trunk", "trunk"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('recipe = "tables/detector"', 'recipe = "tables/detector"\ncolour = "red"', "colour"),
        ("objective.nat_teacher=trunk", "objective.nat_teacher=nobody", "nobody"),
        ("[scale]", "[scale", "spec.toml"),
        ("seeds = 2\njudge = false", "strong = true\njudge = false", "strong"),
    ],
)
def test_a_wrong_specification_is_refused_by_name(specification: Path, old: str, new: str, says: str) -> None:
    specification.write_text(SMALL.replace(old, new))
    with pytest.raises(SpecificationError, match=says):
        Specification.read(specification)


def test_the_small_scale_has_every_row_that_is_to_be_run() -> None:
    """All rows of tables 1 to 5 and 7 on CIFAR-10 but beta under CW, AW-Net and one static network on CIFAR-100,
    Tiny-ImageNet's two."""
    there = {n.title: n for n in Specification.read().networks}
    for number, table in read_paper().items():
        for folder in ("cifar10", "cifar100", "tiny"):
            for attack, networks in table.get(folder, {}).items():
                if (number, attack) == ("4", "cw_inf"):
                    continue
                wanted = set(networks) if folder != "cifar100" else set(networks) & {"awnet", "resnet34"}
                for name in wanted:
                    judged = there[f"{folder}/{name}"].judged
                    assert judged and attack in judged["attacks"] and table["level"] in judged["levels"], (number, name)


def test_the_networks_that_the_small_scale_is_given_are_in_the_repository() -> None:
    """A sweep starts from a fresh checkout."""
    given = Specification.read().given
    assert given and [file for files in given.values() for file in files.values() if not file.is_file()] == []


def test_the_paper_s_numbers_are_printed_as_they_are() -> None:
    """W-Robust is the mean of its parts (Eq. 25) but in three rows that the paper misprints."""
    wrong = set()
    for number, table in tomllib.loads(tables.PAPER.read_text()).items():
        for folder in ("cifar10", "cifar100", "tiny"):
            for attack, networks in table.get(folder, {}).items():
                for name, (natural, adversarial, whole) in networks.items():
                    # Half a unit of the last digit of each number; nan, where nothing is printed, is never above.
                    if abs((natural + adversarial) / 2 - whole) > 0.0101:
                        wrong.add((number, folder, attack, name))
    assert wrong == {
        ("2", "cifar10", "pgd_sat", "repvgg_a2"),
        ("4", "cifar10", "pgd_sat", "awnet"),
        ("5", "cifar10", "pgd_sat", "awnet"),
    }


def report(clean: float, images: int = 1000, **accuracies: float) -> dict[str, Any]:
    """A report of a finished network with these accuracies at T2 (the worst case is of no level)."""
    parts: dict[str, Any] = {
        name if name == "worst_case" else f"T2/{name}": {"accuracy": share, "seconds": 1.0}
        for name, share in accuracies.items()
    }
    return {
        "setup": {"sha256": f"{clean} {accuracies}", "images": images},
        "parts": {"clean": {"accuracy": clean, "images": images}, **parts},
        "made": {"train_seconds": 2.0},
    }


def run(title: str, clean: float, strong: dict[str, Any] | None = None, **accuracies: float) -> FinishedRun:
    """A finished network with these accuracies at T2 on 1,000 images, and reports at full strength by attack."""
    document = report(clean, **accuracies)
    if strong:
        document["strong"] = strong
    return FinishedRun.read(title, document)


def worst(clean: float, worst_case: float, **others: float) -> dict[str, Any]:
    """A report of the worst case on 500 images."""
    return {"worst_case": report(clean, 500, worst_case=worst_case, **others)}


def results(*runs: FinishedRun) -> Results:
    return Results("tiny", "A rehearsal.", {r.title: r for r in runs})


def test_intervals_are_over_seeds_where_there_are_some_and_over_images_where_not() -> None:
    """Student's quantiles as tables print them, times s / sqrt(n); one seed: 1.96 sqrt(p (1 - p) / n)."""
    for n, quantile in ((2, 12.7062), (3, 4.30265), (10, 2.26216), (11, 2.22814), (31, 2.04227), (121, 1.97993)):
        values = [float(i % 2) for i in range(n)]
        assert student(values) == pytest.approx(quantile * statistics.stdev(values) / math.sqrt(n), rel=1e-5), n
    assert binomial(50.0, 1000) == pytest.approx(100 * 1.96 * math.sqrt(0.25 / 1000))
    assert binomial(0.0, 1000) > 0
    found = results(
        run("cifar10/awnet", 0.5, fgsm=0.29), run("cifar10/awnet.s1", 0.7, fgsm=0.31), run("cifar10/awnet-x", 0, fgsm=0)
    )
    interval = found.interval("cifar10/awnet", lambda r: r.accuracy("T2", "fgsm"))
    assert interval is not None and interval.seeds == 2 and interval.value == pytest.approx(30.0)
    assert interval.high - interval.value == pytest.approx(12.7062, rel=1e-5)
    rows = build_table("1", found)["rows"]
    row = next(r for r in rows if (r["set"], r["attack"], r["network"]) == ("cifar10", "fgsm", "awnet"))
    assert row["ours"]["w_robust"]["value"] == pytest.approx(45.0) and row["seconds"] == {"training": 4, "attack": 2}
    assert {r["verdict"].partition(":")[0] for r in rows} == {"stale", "not tried"}


def test_a_verdict_needs_seeds_that_agree() -> None:
    """Paired by seed: gaps of 5, 6 and 7 points hold, the same the other way round fail, one seed never decides."""
    sides = [(f"cifar10/{n}", "T2", "fgsm", "adversarial") for n in ("awnet", "static")]
    above, below = Claim("", "", *sides), Claim("", "", *sides[::-1])
    pairs = [(0.25, 0.20), (0.46, 0.40), (0.37, 0.30)]
    runs = [run(f"cifar10/{n}{s}", 0.5, fgsm=p[i]) for s, p in zip(("", ".s1", ".s2"), pairs, strict=True)
            for i, n in enumerate(("awnet", "static"))]  # fmt: skip
    assert verdict_on(above, results(*runs))["verdict"] == "holds"
    assert verdict_on(below, results(*runs))["verdict"] == "fails"
    assert verdict_on(above, results(*runs))["difference"]["value"] == pytest.approx(6.0)
    noisy = [*runs[:4], run("cifar10/awnet.s2", 0.5, fgsm=0.10), runs[5]]
    assert verdict_on(above, results(*noisy))["verdict"] == "undecided"
    one = results(run("cifar10/awnet", 0.5, fgsm=0.4), run("cifar10/static", 0.5, fgsm=0.2))
    assert verdict_on(above, one)["verdict"] == "undecided: one seed, which says it holds"
    assert verdict_on(above, results(runs[0]))["verdict"] == "not tried"


def test_one_seed_is_paired_image_by_image_where_the_reports_say_which_are_right() -> None:
    """Two networks that differ on the same few images are told apart; the interval is 1.96 s / sqrt(n) of what each
    image contributes to W-Robust."""
    clean, left, right = (torch.arange(500) < n for n in (300, 150, 130))
    runs = {}
    for name, bits in (("awnet", left), ("static", right)):
        document = worst(0.6, float(bits.double().mean()))["worst_case"]
        document["parts"]["clean"]["correct_bits"] = to_hex(clean)
        document["parts"]["worst_case"]["correct_bits"] = to_hex(bits)
        runs[name] = run(f"cifar10/{name}", 0.6, {"worst_case": document}, pgd_trades=0.3)
    judged = judge([Claim("", "", *SIDES)], results(*runs.values()))
    assert judged["verdict"] == "undecided: one seed, which says it holds"
    contributions = [50.0] * 20 + [0.0] * 480
    half = 1.96 * statistics.stdev(contributions) / math.sqrt(500)
    assert judged["difference"]["value"] == pytest.approx(2.0)
    assert judged["difference"]["high"] - judged["difference"]["value"] == pytest.approx(half)


SIDES = [(f"cifar10/{name}", "T2", "pgd_trades", "w_robust") for name in ("awnet", "static")]


def seeds_of(name: str, clean: float, last: float, strongest: float | None) -> list[FinishedRun]:
    """Three seeds, a tenth of a point apart, with the last iterate's accuracy and the worst case's."""
    return [
        run(
            f"cifar10/{name}{suffix}",
            clean,
            None if strongest is None else worst(clean, strongest + i / 1000),
            pgd_trades=last + i / 1000,
        )
        for i, suffix in enumerate(("", ".s1", ".s2"))
    ]


def test_the_worst_case_judges_and_the_last_iterate_stands_beside_it() -> None:
    """A lead under the last iterate that the worst case turns round is a changed verdict; the old one is kept."""
    found = results(*seeds_of("awnet", 0.6, 0.40, 0.05), *seeds_of("static", 0.6, 0.30, 0.20))
    judged = judge([Claim("", "", *SIDES)], found)
    assert (judged["verdict"], judged["changed"], claims.standing(judged)) == ("fails", True, "changed")
    assert judged["difference"]["value"] == pytest.approx(-7.5) and judged["difference"]["seeds"] == 3
    assert judged["last_iterate"]["pgd_trades"]["verdict"] == "holds"
    assert judged["last_iterate"]["pgd_trades"]["difference"]["value"] == pytest.approx(5.0)
    agreeing = results(*seeds_of("awnet", 0.6, 0.40, 0.30), *seeds_of("static", 0.6, 0.30, 0.20))
    judged = judge([Claim("", "", *SIDES)], agreeing)
    assert (judged["verdict"], judged["changed"], claims.standing(judged)) == ("holds", False, "stands")
    one = results(seeds_of("awnet", 0.6, 0.4, 0.3)[0], *seeds_of("static", 0.6, 0.3, 0.1))
    assert judge([Claim("", "", *SIDES)], one)["verdict"] == "undecided: one seed, which says it holds"


def test_nothing_holds_by_last_iterates_alone() -> None:
    """A network that the worst case has not judged makes a claim stale, and so does one about last iterates; single
    steps have no other iterate."""
    alone = results(*seeds_of("awnet", 0.6, 0.4, 0.3), *seeds_of("static", 0.6, 0.3, None))
    judged = judge([Claim("", "", *SIDES)], alone)
    assert judged["verdict"] == "stale: static not trained again, and weights not kept"
    assert judged["last_iterate"]["pgd_trades"]["verdict"] == "holds" and judged["difference"] is None
    waiting = dataclasses.replace(alone, strong=frozenset({"cifar10/static"}))
    assert judge([Claim("", "", *SIDES)], waiting)["verdict"] == "stale: static not judged at full strength yet"
    attacks = [("cifar10/awnet", "T2", attack, "adversarial") for attack in ("fgsm", "pgd_trades")]
    runs = [run(f"cifar10/awnet{s}", 0.6, worst(0.6, 0.1), fgsm=0.5, pgd_trades=0.2 + i / 1000)
            for i, s in enumerate(("", ".s1", ".s2"))]  # fmt: skip
    assert judge([Claim("", "", *attacks)], results(*runs))["verdict"].startswith("stale: about the last iterate")
    for one in runs:
        one.parts["T1/fgsm"] = {"accuracy": one.parts["T2/pgd_trades"]["accuracy"]}
    steps = [("cifar10/awnet", level, "fgsm", "adversarial") for level in ("T2", "T1")]
    assert judge([Claim("", "", *steps)], results(*runs))["verdict"] == "holds"


def test_the_published_ledger_claims_nothing_by_last_iterates_alone() -> None:
    """Every order that holds or fails has figures of the worst case, or compares single steps."""
    ledger = json.loads((ROOT / "training/reports/tables/ledger.json").read_text())
    for judged in ledger["claims"]:
        if judged["verdict"] in ("holds", "fails"):
            assert judged["difference"] or set(judged["last_iterate"]) == {"fgsm"}, judged["claim"]


def test_the_ledger_says_first_what_changed() -> None:
    """Then what stands, then what is stale (decided before first), then what was not tried."""
    found = results(
        *seeds_of("awnet", 0.6, 0.40, 0.05),
        *seeds_of("static", 0.6, 0.30, 0.20),
        *seeds_of("awnet-mixbn", 0.5, 0.1, None),
    )
    order = [claims.standing(judged) for judged in claims.judge_all(found)]
    assert order == sorted(order, key=list(claims.HEADINGS).index)
    assert {"changed", "stale", "not tried"} <= set(order)


def test_a_network_trained_again_does_not_replace_what_was_published() -> None:
    """Other weights stand beside the report, and the worst case of them judges; the same weights complete it."""
    published = report(0.6, pgd_trades=0.3)
    again = report(0.5, pgd_trades=0.2) | {"strong": worst(0.5, 0.1)}
    assert merged(None, again) == again
    both = FinishedRun.read("cifar10/awnet", merged(published, again))
    assert both.clean == 60.0 and both.accuracy("T2", "pgd_trades") == 30.0
    assert both.again is not None and both.again.clean == 50.0
    under = both.under("worst_case")
    assert under is not None and under.accuracy("T2", "worst_case") == 10.0 and under.images == 500
    assert merged(merged(published, again), again) == merged(published, again)
    unjudged = {k: v for k, v in again.items() if k != "strong"}
    assert merged(merged(published, again), unjudged) == merged(published, again)
    judged = published | {"strong": worst(0.6, 0.2)}
    assert merged(published, judged) == judged and merged(judged, published) == judged


def test_every_attack_that_the_small_scale_judges_by_exists() -> None:
    """The paper's and those at full strength; the four networks that the fair comparison is between have the latter."""
    networks = Specification.read().networks
    known = next(a for a in evaluate.arguments()._actions if a.dest == "attacks").choices
    asked = {attack for n in networks for how in (n.judged, *n.strong.values()) if how for attack in how["attacks"]}
    assert asked <= set(known or ())
    strong = {n.title for n in networks if n.strong and ".s" not in n.name}
    assert strong == {f"cifar10/{name}" for name in ("awnet", "static", "static-long", "static-detector")}


def test_every_claim_speaks_of_networks_that_the_small_scale_makes() -> None:
    """With the level and the attack that it compares."""
    there = {n.title: n.judged for n in Specification.read().networks}
    for claim in claims.claims():
        for title, level, attack, kind in (claim.left, claim.right):
            judged = there[title]
            assert judged and level in judged["levels"], claim
            assert {attack, "fgsm" if kind == "gap" else attack} <= set(judged["attacks"]), claim
