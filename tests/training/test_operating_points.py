"""The command that chooses an operating point: what it measures, how it goes on, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_awnet import write_checkpoint
from training import operating_points
from training.data.images import ImageSet, Split
from training.evaluation import frontier, natural
from training.evaluation.points_report import LEAST_CLEAN, chosen_of, tied
from training.networks import checkpoint
from training.networks.awnet import AWNetConfig
from training.networks.baselines import StaticConfig, build_static

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def dataset(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Generated images in place of CIFAR-10, one corruption, no pictures from elsewhere."""

    def images(n: int) -> Split:
        return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))

    made = ImageSet(train=images(1), validation=images(12), test=images(1), labels=[str(i) for i in range(10)])
    monkeypatch.setattr(operating_points, "load_images", lambda name, data_dir: made)
    monkeypatch.setattr(natural, "CORRUPTIONS", {"jpeg": natural.CORRUPTIONS["jpeg"]})
    monkeypatch.setattr(natural, "PICTURES", {})
    return made


@pytest.fixture
def awnet(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "awnet.pt", AWNetConfig(width=4, extractor_width=4))


def command(ckpt: Path, out: Path, *more: object) -> list[str]:
    small = ["--images", 6, "--steps", 1, "--limits", 0.4, "--temperatures", 1, 2, "--natural", 2, "--autoattack", 0]
    return [str(a) for a in ("--ckpt", ckpt, "--data-dir", "unused", "--out", out, *small, "--least-clean", 0, *more)]


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "points.json").read_text("utf-8"))


def static(path: Path) -> Path:
    checkpoint.save(path, checkpoint.pack(build_static(StaticConfig("resnet20", 4)), labels=[], recipe={}))
    return path


@pytest.mark.slow
def test_one_command_measures_every_point_and_writes_the_chosen_one(awnet: Path, tmp_path: Path) -> None:
    """Table, plot and checkpoint; started again it attacks nothing, and another grid goes on."""
    out, written = tmp_path / "points", tmp_path / "chosen.pt"
    control = static(tmp_path / "static.pt")
    assert operating_points.main(command(awnet, out, "--static", control, "--write", written)) == 0
    document = report(out)
    names = [row["name"] for row in document["points"]]
    assert names == ["robust", "natural", "auto, Eq. 16", "auto, a_max 0.4, T 1", "auto, a_max 0.4, T 2"]
    for row in document["points"]:
        for value, low, high in (row["clean"], row["worst_case"]):
            assert low <= value <= high
        assert row["finished"] or row["beaten"]
        assert (row["flagged"] is not None) == row["finished"]
    assert document["done"] and document["chosen"] in names and document["static"]["checkpoint"] == "static.pt"
    assert {"pristine", "jpeg"} == document["false_positives"].keys()
    text = (out / "points.md").read_text("utf-8")
    assert all(name in text for name in names) and "](frontier.svg)" in text
    table = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(table[: len(names) + 3]) == {7}, "a cell is missing"
    assert (out / "frontier.svg").is_file() and (out / "frontier.png").is_file()
    assert str(tmp_path) not in text + (out / "points.json").read_text("utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "climb", None)
        patch.setattr(operating_points, "worst_case", None)
        assert operating_points.main(command(awnet, out, "--static", control)) == 0
    assert report(out) == document
    assert operating_points.main(command(awnet, out, "--static", control, "--limits", 0.3)) == 0
    assert [row["name"] for row in report(out)["points"]][3:] == ["auto, a_max 0.3, T 1", "auto, a_max 0.3, T 2"]


@pytest.mark.slow
def test_the_mixing_changes_and_the_calibration_need_not(awnet: Path, tmp_path: Path, dataset: ImageSet) -> None:
    """The score does not depend on the point, bit for bit, so thresholds and domains stay what they are."""
    point = operating_points.Point("auto", "bounded", 0.4, 2.0)
    operating_points.write(awnet, tmp_path / "new.pt", point, "0" * 64)
    old, new = checkpoint.read(awnet), checkpoint.read(tmp_path / "new.pt")
    assert new["config"] == {**old["config"], "mixing": "bounded", "mixing_limit": 0.4, "mixing_temperature": 2.0}
    assert "a_max 0.4, T 2" in new["provenance"].pop("operating_point") and new["provenance"] == old["provenance"]
    for key in ("state", "calibration"):
        assert str(old[key]) == str(new[key])
    x = dataset.validation.images / 255
    before, after = (checkpoint.load(p).awnet for p in (awnet, tmp_path / "new.pt"))
    for one, other in ((before.detect(x), after.detect(x)),):
        assert torch.equal(one.p_type, other.p_type) and torch.equal(torch.cat(one.omega, 1), torch.cat(other.omega, 1))
    assert not torch.equal(before(x), after(x))


def test_the_rule_takes_the_highest_worst_case_of_those_that_are_clean_enough() -> None:
    """Ties go to AutoAttack, then to clean accuracy; other modes and unfinished points are not chosen."""

    def row(name: str, clean: float, left: float, **more: Any) -> dict[str, Any]:
        shares = {"clean": [clean, 0, 1], "worst_case": [left, 0, 1]}
        return {"name": name, "mode": "auto", "finished": True, "autoattack": None, **shares, **more}

    rows = [row("a", 0.87, 0.2), row("b", 0.86, 0.25), row("c", 0.8, 0.3), row("r", 0.9, 0.5, mode="robust")]
    rows.append(row("u", 0.88, 0.4, finished=False))
    assert chosen_of(rows, 0.86) == "b" and chosen_of(rows, 0.87) == "a" and chosen_of(rows, 0.95) is None
    same = [row("d", 0.86, 0.25, autoattack={"accuracy": [0.2, 0, 1]}), row("b", 0.87, 0.25)]
    assert tied([*rows, *same], 0.86) == ["b", "d", "b"]
    assert chosen_of([row("a", 0.88, 0.25, autoattack={"accuracy": [0.1, 0, 1]}), *same[:1]], 0.86) == "d"
    assert chosen_of([row("a", 0.88, 0.25), row("b", 0.87, 0.25)], 0.86) == "a"


def test_the_page_about_the_rule_has_the_programs_numbers() -> None:
    page = (ROOT / "docs/decisions/0019-the-operating-point.md").read_text("utf-8")
    defaults = operating_points.arguments().parse_args(["--ckpt", "a", "--data-dir", "b", "--out", "c"])
    assert f"**{100 * LEAST_CLEAN:g} %**" in page and f"of the first {defaults.images}." in page
    assert f"AutoAttack on the first {defaults.autoattack}" in page and defaults.eps == 8


@pytest.mark.slow
def test_where_no_point_is_clean_enough_nothing_is_chosen(awnet: Path, tmp_path: Path, capsys: Any) -> None:
    written = tmp_path / "chosen.pt"
    assert operating_points.main(command(awnet, tmp_path / "p", "--least-clean", 1, "--write", written)) == 1
    assert "none is chosen" in capsys.readouterr().err and not written.exists()


@pytest.mark.slow
def test_another_set_up_is_refused(awnet: Path, tmp_path: Path, capsys: Any) -> None:
    """A report is of one checkpoint and one attack; --fresh begins anew."""
    out = tmp_path / "points"
    assert operating_points.main(command(awnet, out)) == 0
    with pytest.raises(SystemExit) as stopped:
        operating_points.main(command(awnet, out, "--seed", 1))
    assert stopped.value.code == 2 and "another set-up (seed)" in capsys.readouterr().err
    assert operating_points.main(command(awnet, out, "--seed", 1, "--fresh")) == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--images", 0], "--images must be at least 1"),
        (["--limits", 0.5], "mixing_limit must lie between 0 and 0.5"),
        (["--temperatures", -1], "mixing_temperature must be positive"),
        (["--eps", 0.5], "a smaller ball holds no other 8-bit image"),
        (["--least-clean", 86], "--least-clean is a share"),
    ],
)
def test_what_could_not_end_well_is_refused_at_once(
    awnet: Path, tmp_path: Path, capsys: Any, more: list[object], reason: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        operating_points.main(command(awnet, tmp_path / "points", *more))
    assert stopped.value.code == 2 and reason in capsys.readouterr().err


def test_networks_without_two_branches_are_refused(tmp_path: Path, capsys: Any) -> None:
    one_norm = write_checkpoint(tmp_path / "one.pt", AWNetConfig(width=4, extractor_width=4, mixbn=False))
    for path, reason in ((static(tmp_path / "static.pt"), "needs an AW-Net"), (one_norm, "needs mixbn")):
        with pytest.raises(SystemExit) as stopped:
            operating_points.main(command(path, tmp_path / "points"))
        assert stopped.value.code == 2 and reason in capsys.readouterr().err
