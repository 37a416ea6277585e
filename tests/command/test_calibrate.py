"""`awnet calibrate`: thresholds for images of one's own, in a version that a server takes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from PIL import Image, ImageFilter

from awnet.__main__ import main
from awnet.command import site
from awnet.command.calibration import summary
from awnet.command.versions import contract_of
from export.repository.repository import publish as export_publish
from server.core.contract import parse
from server.core.images import Traits
from tests.repository import ROOT
from tests.server.tiny import graph, publish

MODEL = max((ROOT / "model_repository/awnet").glob("*/model.onnx"), key=lambda path: int(path.parent.name))
PHOTOS = 260
NEXT = int(MODEL.parent.name) + 1


def photo(seed: int) -> bytes:
    """A cut-out of an example, sharpened: natural, and often flagged by the bundled model."""
    rng = np.random.default_rng(seed)
    drawn = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*[a-z].png"))]
    chosen = drawn[seed % len(drawn)].resize((96, 96), Image.Resampling.BICUBIC)
    left, top = (int(n) for n in rng.integers(0, 40, 2))
    cut = chosen.crop((left, top, left + 48, top + 48))
    noisy = np.asarray(cut, np.int16) + rng.integers(-12, 13, (48, 48, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).filter(ImageFilter.UnsharpMask(2, 120, 0))
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(PHOTOS):
        (folder / f"{seed:03}.png").write_bytes(photo(seed))
    return folder


@pytest.fixture(scope="module")
def calibrated(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the calibrated version, and the report beside it."""
    folder = tmp_path_factory.mktemp("calibrated")
    arguments = [str(MODEL), str(photos), "--adversarial", str(ROOT / "examples/ship-adversarial.png")]
    given = ["--repository", str(folder / "models"), "--report", str(folder / "report.json")]
    assert main(["calibrate", *arguments, *given]) == 0
    return folder


@pytest.mark.slow
def test_natural_images_are_flagged_as_often_as_was_promised(calibrated: Path) -> None:
    """On the half that set no threshold, in every kind: the rates' own intervals reach down to 5 and 1 per cent."""
    report = json.loads((calibrated / "report.json").read_text("utf-8"))
    assert set(report["flagged"]) == {*site.KINDS, "adversarial"} and report["images"] == PHOTOS
    for kind in site.KINDS:
        after = report["flagged"][kind]["after"]
        assert after["suspicious"][1] <= 0.05 and after["adversarial"][1] <= 0.01
        assert after["calibrated"] >= 0.97 * after["images"]
    before = report["flagged"][site.AS_IT_IS]["before"]
    assert before["suspicious"][0] > 0.2 > report["flagged"][site.AS_IT_IS]["after"]["suspicious"][0]
    for made in report["thresholds"].values():
        assert made["low"] <= made["score"] <= made["high"]
        assert made["score"] == max(score for score, _, _ in made["kinds"].values())
        assert all(low <= score <= high for score, low, high in made["kinds"].values())


@pytest.mark.slow
def test_too_few_images_are_told_with_how_many_it_takes(calibrated: Path) -> None:
    """What 1 % of a hundred images is worth stands beside it, as Wilson's interval."""
    report = json.loads((calibrated / "report.json").read_text("utf-8"))
    strict, loose = report["thresholds"]["adversarial"], report["thresholds"]["suspicious"]
    assert 99 <= strict["images"] < PHOTOS and strict["enough"] == 1530 and loose["enough"] == 300
    assert strict["rate"][1] < 0.003 and strict["rate"][2] > 0.03
    said = summary(report)
    assert f"{PHOTOS} images are few for a threshold at 1 %: 1530 would know it within a factor of two" in said
    assert re.search(r"1 % of \d+ images, which may be 0\.\d to [345]\.\d %", said)


@pytest.mark.slow
def test_scores_and_thresholds_are_drawn(calibrated: Path) -> None:
    """An SVG that opens: a histogram a kind, both thresholds before and after."""
    drawing = ElementTree.parse(calibrated / "report.svg")
    titles = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.partition(":")[0] for title in titles] == [
        f"{point} {when}" for when in ("before", "after") for point in ("suspicious", "adversarial")
    ]
    texts = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {*site.KINDS, f"{PHOTOS} images"} <= texts


@pytest.mark.slow
def test_without_options_the_model_that_would_be_served_goes_where_no_server_looks_by_itself(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command that is printed serves it."""
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(photos)]) == 0
    said = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["calibrated"]
    assert (tmp_path / f"calibrated/awnet/{NEXT}/model.onnx").is_file()
    assert f"published: calibrated/awnet/{NEXT}, unsigned" in said
    (command,) = re.findall("serve it:  awnet serve (.*)", said)
    assert main(["predict", str(photos / "000.png"), *command.split(), "--out", "out.jsonl"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["adversarial"]["domain"] == "site"


@pytest.mark.slow
def test_the_version_differs_in_its_domains_alone_and_is_served(calibrated: Path, tmp_path: Path, photos: Path) -> None:
    """Weights, golden values and the other domains are the model's own; the site's domain comes first."""
    made = calibrated / f"models/awnet/{NEXT}/model.onnx"
    old, new = (onnx.load(path) for path in (MODEL, made))
    assert old.graph == new.graph and len(new.metadata_props) == len(old.metadata_props)
    was, now = contract_of(MODEL.read_bytes()), contract_of(made.read_bytes())
    assert now["domains"][0]["name"] == "site" and now["domains"][1:] == was["domains"]
    assert {k for k in now if now[k] != was.get(k)} == {"domains", "provenance"}
    assert parse(json.dumps(now)).domains[0].rates["fpr_worst"]["kind"] in (site.JPEG, site.HALF)
    out = tmp_path / "out.jsonl"
    given = ["--repository", str(calibrated / "models"), "--out", str(out)]
    assert main(["predict", str(photos / "000.png"), *given]) == 0
    assert json.loads(out.read_text("utf-8"))["adversarial"]["domain"] == "site"


@pytest.mark.slow
def test_calibrated_again_the_site_is_replaced_and_versions_are_never_overwritten(
    calibrated: Path, photos: Path
) -> None:
    made = calibrated / f"models/awnet/{NEXT}/model.onnx"
    before = made.read_bytes()
    assert main(["calibrate", str(made), str(photos), "--repository", str(calibrated / "models")]) == 0
    assert made.read_bytes() == before
    names = [
        part["name"]
        for part in contract_of((calibrated / f"models/awnet/{NEXT + 1}/model.onnx").read_bytes())["domains"]
    ]
    assert names.count("site") == 1 and names[0] == "site"


@pytest.mark.parametrize(
    "what",
    ["few", "no onnx", "no contract", "schema 1", "name", "folder", "nowhere", "no images", "empty", "pipe", "pipes"],
)
def test_what_cannot_be_calibrated_is_told_in_one_line_and_nothing_is_written(
    what: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:20]:
        shutil.copy(path, few)
    model, name, paths = MODEL, "awnet", few
    if what == "no onnx":
        model = tmp_path / "model.onnx"
        model.write_bytes(b"none")
    elif what == "no contract":
        model = tmp_path / "model.onnx"
        model.write_bytes(graph().SerializeToString())
    elif what == "schema 1":
        model = publish(tmp_path / "tiny") / "awnet/1/model.onnx"
    elif what == "name":
        name = "../up"
    elif what == "folder":
        model = tmp_path
    elif what == "nowhere":
        model = tmp_path / "nowhere.onnx"
    elif what == "no images":
        paths = tmp_path / "none"
    elif what == "empty":
        paths = tmp_path / "empty"
        paths.mkdir()
    elif what == "pipe":
        os.mkfifo(paths := tmp_path / "pipe.png")
    elif what == "pipes":
        os.mkfifo(model := tmp_path / "pipe.onnx")
    out = tmp_path / "models"
    assert main(["calibrate", str(paths), "--model", str(model), "--out", str(out), "--name", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not calibrated: ") and not out.exists()
    assert what != "few" or "a threshold for 1 % needs 99: give at least 250 in all" in line


@pytest.mark.slow
def test_tritons_configuration_tells_of_the_new_version_too(tmp_path: Path, photos: Path) -> None:
    """As if the exporter had written it: contract and hash of each version."""
    repository = tmp_path / "models"
    export_publish(MODEL.read_bytes(), repository, version=1)
    assert main(["calibrate", str(MODEL), str(photos), "--repository", str(repository)]) == 0
    written = (repository / "awnet/config.pbtxt").read_text("utf-8")
    made = (repository / f"awnet/{NEXT}/model.onnx").read_bytes()
    folder = export_publish(made, tmp_path / "again", version=NEXT)
    theirs = (folder.parent / "config.pbtxt").read_text("utf-8")
    added = [line for line in theirs.splitlines() if f'.{NEXT}" value' in line]
    assert len(added) == 2 and all(line in written.splitlines() for line in added)
    assert (repository / f"awnet/{NEXT}/manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("scores", "fpr", "threshold"), [(99, 0.01, 98), (99, 0.05, 94), (199, 0.01, 197), (10, 0.01, 9)]
)
def test_a_threshold_is_the_conformal_quantile(scores: int, fpr: float, threshold: int) -> None:
    """The k-th least of n, k the least whole number of at least (n + 1)(1 - fpr): then a further image lies over it
    with probability at most fpr."""
    assert site.quantile(fpr)(np.arange(scores, dtype=float)) == threshold


def test_the_halves_do_not_depend_on_order_or_name() -> None:
    """A coin that the image's own bytes throw, so that a copy never sits in both."""
    digests = [sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(400)]
    halves = [{site.Seen(one, kind, 0.0, Traits({}), {}).checks for kind in site.KINDS} for one in digests]
    assert all(len(half) == 1 for half in halves)
    assert 150 < sum(True in half for half in halves) < 250
