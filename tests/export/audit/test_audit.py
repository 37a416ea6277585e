"""The audit of a model file: it finds what is planted, needs no torch, goes on where it stopped, says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from domain.statistics import measure
from export.audit.__main__ import main
from export.audit.model_file import OUTSIDE, ModelFile
from export.audit.parts import auroc, judged, share
from export.repository.layout import METADATA_KEY
from server.core import contract, verdict
from server.core.images import Traits
from tests.server.schema_2 import THRESHOLDS, schema_2
from tests.server.tiny import SIZE, contract_of, graph, tensor

Document = dict[str, Any]
COUNT = 4


def write_model(path: Path, change: Callable[[Document], None] = lambda document: None) -> Path:
    """The tiny network of the server's tests, whose score is the mean of the red channel."""
    model = graph()
    document = contract_of(model)
    change(document)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(document))
    path.write_bytes(model.SerializeToString())
    return path


def pixels(red: int, seed: int = 0) -> np.ndarray:
    """An image [3,S,S] of many colours whose red channel has a mean."""
    image = np.random.default_rng(seed).integers(0, 256, (3, SIZE, SIZE)).astype(np.uint8)
    image[0] = np.clip(red + np.tile([-30, 30], SIZE * SIZE // 2).reshape(SIZE, SIZE), 0, 255)
    return image


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def t0(tmp_path: Path, model: Path) -> Path:
    """One T0 file: natural images that are clean and right, adversarial ones that are flagged."""
    folder = tmp_path / "t0"
    folder.mkdir()
    clean = np.stack([pixels(80, seed) for seed in range(COUNT)])
    labels = ModelFile(model).serve(clean).logits.argmax(axis=1)
    adversarial = np.stack([pixels(220, seed) for seed in range(COUNT)])
    np.savez(folder / "planted.npz", images=adversarial, clean=clean, labels=labels, about="red images")
    return folder


@pytest.fixture
def audit(tmp_path: Path, model: Path) -> Callable[..., tuple[int, Document]]:
    """The program with a model and a report of its own: exit status, report."""

    def run(*options: object) -> tuple[int, Document]:
        out = tmp_path / "report.json"
        given = ["--model", model, "--out", out, "--queries", 30, "--threads", 1, *options]
        status = main(list(map(str, given)))
        return status, json.loads(out.read_text("utf-8")) if out.exists() else {}

    return run


@pytest.mark.slow
def test_everything_is_audited_with_a_t0_folder(audit, t0, tmp_path) -> None:
    """Figures of every part, and tables beside them."""
    status, report = audit("--t0", t0, "--eps", 2, 16)
    parts = report["parts"]
    assert status == 0 and report["skipped"] == {}
    assert parts["golden"]["holds"]
    transferred = parts["t0/planted"]
    assert transferred["about"] == "red images" and transferred["auroc"] == 1.0
    assert transferred["flagged"]["suspicious"][0] == transferred["flagged"]["adversarial"][0] == 1.0
    assert transferred["natural"]["accuracy"][0] == parts["natural"]["accuracy"][0] == 1.0
    assert parts["natural"]["flagged"]["suspicious"][0] == 0.0
    assert {name for name in parts if name.startswith(("square", "boundary"))} == {
        *(f"square/{aim}/{eps}" for aim in ("class", "evasion") for eps in (2, 16)),
        "boundary/class",
        "boundary/evasion",
    }
    for aim in ("class", "evasion"):
        assert parts[f"square/{aim}/2"]["reached"][0] <= parts[f"square/{aim}/16"]["reached"][0]
        assert list(parts[f"boundary/{aim}"]["reached"]) == ["2", "4", "8", "16"]
    strengths = parts["corruptions/jpeg"]["strengths"]
    assert list(strengths) == ["1", "2", "3", "4", "5"] and "accuracy" in strengths["1"]
    tables = (tmp_path / "report.md").read_text("utf-8")
    assert "Golden values hold" in tables and "planted, T0" in tables and "| jpeg |" in tables


def test_a_wrong_golden_value_is_found(tmp_path, audit, capsys) -> None:
    """By more than the tolerance in one output; the exit status says so, too."""

    def plant(document: Document) -> None:
        golden = document["golden"]
        raw = ModelFile(write_model(tmp_path / "right.onnx")).golden.outputs["logits"].copy()
        raw[1, 3] += 0.01
        golden["logits"] = tensor(raw)

    status, report = audit("--model", write_model(tmp_path / "planted.onnx", plant))
    golden = report["parts"]["golden"]
    assert status == 1 and not golden["holds"]
    assert golden["differences"]["logits"] == pytest.approx(0.01, abs=1e-4) and golden["differences"]["omega"] < 1e-5
    assert "golden values do not hold" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.slow
def test_neither_torch_nor_onnx_nor_other_packages_of_ours_are_loaded(tmp_path, model, t0) -> None:
    """A whole audit in a fresh process, and what is loaded at its end."""
    options = ["--model", str(model), "--t0", str(t0), "--queries", "5", "--out", str(tmp_path / "report.json")]
    program = f"""
import sys
from export.audit.__main__ import main
assert main({options!r}) == 0
print({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "onnx", "training", "server", "benchmarks"}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_started_audit_goes_on(audit, t0, tmp_path, monkeypatch) -> None:
    """What is finished is not made again, and an audit that was cut off ends as one that was not."""
    _, whole = audit("--t0", t0, "--parts", "golden", "natural", "square")
    report = tmp_path / "report.json"
    cut = json.loads(report.read_text("utf-8"))
    removed = cut["parts"].pop("square/evasion/8")
    cut["parts"]["natural"]["images"] = 4711  # a finished part is kept as it is
    report.write_text(json.dumps(cut), "utf-8")
    status, again = audit("--t0", t0, "--parts", "golden", "natural", "square")
    assert status == 0 and again["parts"]["natural"]["images"] == 4711
    for part in (removed, again["parts"]["square/evasion/8"]):
        del part["seconds"]
    assert again["parts"]["square/evasion/8"] == removed
    _, fresh = audit("--t0", t0, "--parts", "golden", "natural", "square", "--fresh")
    assert fresh["parts"]["natural"]["images"] == COUNT
    assert fresh["parts"].keys() == whole["parts"].keys()


def test_a_report_of_another_audit_is_not_overwritten(audit, t0, capsys) -> None:
    """The differing options are named."""
    assert audit("--t0", t0, "--parts", "natural")[0] == 0
    assert audit("--t0", t0, "--parts", "natural", "--seed", 1)[0] == 2
    assert "another set-up (seed)" in capsys.readouterr().err


def test_what_is_missing_is_left_out_and_said(audit, capsys) -> None:
    """With a model alone only its golden values can be judged."""
    status, report = audit()
    assert status == 0 and list(report["parts"]) == ["golden"]
    assert set(report["skipped"]) == {"natural", "t0", "corruptions", "square", "boundary"}
    assert "square: left out: no image's class is known" in capsys.readouterr().out


def save(folder: Path, count: int = 3, side: int = SIZE) -> Path:
    folder.mkdir(parents=True)
    for seed in range(count):
        Image.fromarray(pixels(80, seed).transpose(1, 2, 0)).resize((side, side)).save(folder / f"{seed}.png")
    return folder


def test_a_folder_of_png_files_is_judged(audit, tmp_path) -> None:
    """Without classes there are false-positive rates and no accuracy; with a folder a class there is both."""
    _, report = audit("--images", save(tmp_path / "photos"), "--parts", "natural", "square")
    assert "accuracy" not in report["parts"]["natural"] and "square" in report["skipped"]
    assert report["parts"]["natural"]["flagged"]["suspicious"][0] == 0
    for label in ("cat", "ship"):
        save(tmp_path / "labelled" / label)
    options = ("--images", tmp_path / "labelled", "--parts", "natural", "square", "--limit", "4", "--fresh")
    _, report = audit(*options)
    assert report["parts"]["natural"]["images"] == 4
    assert {"square/class/8", "square/evasion/8"} <= report["parts"].keys()


THRESHOLD_NAN = {"suspicious": {"score": float("nan")}, "adversarial": {"score": 0.5}}
THRESHOLDS_TURNED = {"suspicious": {"score": 0.5}, "adversarial": {"score": 0.3}}
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
OTHER_PARTS = b'{"setup": {}, "parts": {"golden": 5}}'
ERRORS = {
    "there is no such file": lambda folder: ["--model", folder / "absent.onnx"],
    "no ONNX model": lambda folder: ["--model", _file(folder / "text.onnx", b"a text")],
    "no contract": lambda folder: ["--model", _file(folder / "bare.onnx", graph().SerializeToString())],
    "a contract of another schema": lambda folder: ["--model", _changed(folder, schema_version=4)],
    "a broken contract": lambda folder: ["--model", _changed(folder, golden=None)],
    "a threshold that is no number": lambda folder: ["--model", _spoilt(folder, thresholds=THRESHOLD_NAN)],
    "thresholds the wrong way round": lambda folder: ["--model", _spoilt(folder, thresholds=THRESHOLDS_TURNED)],
    "a range that holds nothing": lambda folder: ["--model", _spoilt(folder, ranges={"colours": [1, 0.3]})],
    "a range that no float holds": lambda folder: ["--model", _spoilt(folder, ranges={"colours": [0, 10**400]})],
    "a domain twice": lambda folder: ["--model", _spoilt(folder, name="pool")],
    "golden images of another size": lambda folder: ["--model", _changed(folder, preprocessing={"size": 16})],
    "another number of classes": lambda folder: ["--model", _changed(folder, labels=["cat", "dog"])],
    "no folder of images": lambda folder: ["--images", folder / "absent"],
    "an empty folder": lambda folder: ["--images", _folder(folder / "empty")],
    "an empty T0 folder": lambda folder: ["--t0", _folder(folder / "empty")],
    "images of another size": lambda folder: ["--images", save(folder / "large", side=SIZE + 1)],
    "T0 images of another size": lambda folder: ["--t0", _t0(folder, images=np.zeros((2, 3, 8, 8), np.uint8))],
    "T0 classes that do not exist": lambda folder: ["--t0", _t0(folder, labels=np.array([0, 10]))],
    "a T0 file without natural images": lambda folder: ["--t0", _t0(folder, clean=None)],
    "a T0 file that is none": lambda folder: ["--t0", _file(_folder(folder / "t0") / "a.npz", b"a text").parent],
    "a file that is no PNG": lambda folder: ["--images", _file(_folder(folder / "i") / "a.png", b"a text").parent],
    "a transparent image": lambda folder: ["--images", _png(folder, Image.new("RGBA", (SIZE, SIZE)))],
    "grey of 16 bits": lambda folder: ["--images", _png(folder, Image.new("I;16", (SIZE, SIZE)))],
    "an image on its side": lambda folder: ["--images", _png(folder, Image.new("L", (SIZE, SIZE)), exif=SIDEWAYS)],
    "T0 images that are one number": lambda folder: ["--t0", _t0(folder, images=np.uint8(3))],
    "T0 classes in two columns": lambda folder: ["--t0", _t0(folder, labels=np.zeros((2, 1), np.int64))],
    "an empty T0 file": lambda folder: ["--t0", _file(_folder(folder / "t0") / "a.npz", b"").parent],
    "a PNG file with a broken chunk": lambda folder: ["--images", _broken_png(folder)],
    "a folder that is no class": lambda folder: ["--images", save(folder / "i" / "zebra").parent],
    "a report in no folder": lambda folder: ["--out", folder / "absent" / "report.json"],
    "a report that is none": lambda folder: ["--out", _file(folder / "other.json", b"[]")],
    "a report of other parts": lambda folder: ["--out", _file(folder / "other.json", OTHER_PARTS)],
    "a report without parts": lambda folder: ["--out", _file(folder / "other.json", b'{"setup": {}, "parts": []}')],
    "a folder for a report": lambda folder: ["--out", _folder(folder / "folder.json")],
}
TOLD = {
    "there is no such file": "No such file",
    "no ONNX model": "not a model that onnxruntime can run",
    "no contract": "carries no contract",
    "a contract of another schema": "has schema 4; this program reads 1 to 3",
    "a broken contract": "is broken",
    "a threshold that is no number": "are [nan, 0.5], which do not rise",
    "thresholds the wrong way round": "are [0.5, 0.3], which do not rise",
    "a range that holds nothing": "the range of colours in domain 'pristine' is [1.0, 0.3]",
    "a range that no float holds": "is broken: int too large",
    "a domain twice": "two domains have one name",
    "golden images of another size": "the model takes [N, 3, 16, 16]",
    "another number of classes": "no output logits of width 2",
    "no folder of images": "there is no folder",
    "an empty folder": "holds no file *.png",
    "an empty T0 folder": "holds no file *.npz",
    "images of another size": "33x33 pixels, and the model takes 32x32",
    "T0 images of another size": "images are uint8 [2, 3, 8, 8], and the model takes uint8 [2, 3, 32, 32]",
    "T0 classes that do not exist": "labels must be int64 from 0 to 9",
    "a T0 file without natural images": "no T0 file",
    "a T0 file that is none": "no T0 file",
    "a file that is no PNG": "cannot be read as a PNG file",
    "a transparent image": "is no plain image",
    "grey of 16 bits": "is no plain image",
    "an image on its side": "is no plain image",
    "T0 images that are one number": "no T0 file",
    "T0 classes in two columns": "labels must be int64",
    "an empty T0 file": "no T0 file",
    "a PNG file with a broken chunk": "cannot be read as a PNG file",
    "a folder that is no class": "has a folder zebra, which is none of the classes",
    "a report in no folder": "in a folder that exists",
    "a report that is none": "is not a report of this program",
    "a report of other parts": "is not a report of this program",
    "a report without parts": "is not a report of this program",
    "a folder for a report": "must be a .json file",
}


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _png(folder: Path, image: Image.Image, **more: Any) -> Path:
    image.save(_folder(folder / "i") / "a.png", **more)
    return folder / "i"


def _broken_png(folder: Path) -> Path:
    """A file whose chunk of pixels says that it ends after one byte."""
    images = _png(folder, Image.new("L", (SIZE, SIZE)))
    data = (images / "a.png").read_bytes()
    at = data.index(b"IDAT")
    return _file(images / "a.png", data[: at - 4] + b"\0\0\0\1" + data[at:]).parent


def _changed(folder: Path, **values: object) -> Path:
    return write_model(folder / "changed.onnx", lambda document: document.update(values))


def _spoilt(folder: Path, **values: object) -> Path:
    """A model whose first domain has other values."""

    def change(document: Document) -> None:
        schema_2()(document)
        document["domains"][0].update(values)

    return write_model(folder / "spoilt.onnx", change)


def _t0(folder: Path, **values: object) -> Path:
    right = {"images": np.zeros((2, 3, SIZE, SIZE), np.uint8), "labels": np.array([0, 1]), "about": "zeros"}
    arrays = {"clean": right["images"], **right, **values}
    np.savez(_folder(folder / "t0") / "a.npz", **{name: value for name, value in arrays.items() if value is not None})
    return folder / "t0"


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_audited_is_one_line(error, audit, tmp_path, capsys) -> None:
    """Exit status 2, what is wrong, and no report."""
    status, report = audit(*ERRORS[error](tmp_path))
    message = capsys.readouterr().err
    assert status == 2 and report == {}
    assert TOLD[error] in message and len(message.splitlines()) == 1, message


def few_colours() -> np.ndarray:
    """An image [3,S,S] of 200 colours in 1,024 pixels: no pristine one, but one of the pool."""
    image = np.zeros((3, SIZE, SIZE), np.uint8)
    image[0] = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 200
    return image


@pytest.mark.parametrize("change", [lambda document: None, schema_2()], ids=["schema 1", "schema 2"])
def test_answers_are_those_that_the_server_gives(tmp_path, change) -> None:
    """Probabilities, score, verdict and domain as server code makes them of the same outputs and the same contract."""
    path = write_model(tmp_path / "model.onnx", change)
    text = {p.key: p.value for p in onnx.load(path).metadata_props}[METADATA_KEY]
    domains = contract.parse(text).domains
    images = np.stack([*(pixels(red, red) for red in (20, 80, 104, 105, 150, 197, 230)), few_colours()])
    images[-2] = 255  # one colour
    model = ModelFile(path)
    served, outputs = model.serve(images), model.run(images)
    for n, image in enumerate(images):
        right = verdict.judge_image(float(outputs["p_type"][n, 0]), Traits(measure(image)), domains, 0.5)
        assert served.score[n] == verdict.shown(right.score, right.applied.thresholds)
        flags = (served.score[n] > served.suspicious[n], served.score[n] > served.adversarial[n])
        assert verdict.VERDICTS[sum(flags)] == right.verdict
        assert (served.domain[n] != OUTSIDE) == right.calibrated
        assert model.domains[served.domain[n]].name == right.applied.name
        ranked = verdict.ranked(outputs["logits"][n], len(served.logits[n]))
        rounded = [verdict.significant(share) for _, share in sorted(ranked)]
        assert np.exp(served.logits[n]) == pytest.approx(rounded, rel=1e-12)


def test_the_thresholds_are_those_of_the_first_domain_that_holds_the_image(tmp_path) -> None:
    """Outside all of them the last one's apply, and the report counts it."""
    model = ModelFile(write_model(tmp_path / "model.onnx", schema_2()))
    served = model.serve(np.stack([pixels(80), few_colours(), np.zeros_like(few_colours())]))
    assert served.domain.tolist() == [0, 1, OUTSIDE]
    pristine, pool = THRESHOLDS["pristine"], THRESHOLDS["pool"]
    assert judged(model, served, None)["outside"][0] == pytest.approx(1 / 3, abs=1e-6)
    points = zip(served.suspicious.tolist(), served.adversarial.tolist(), strict=True)
    assert list(points) == [pristine, pool, pool]


def test_shares_have_wilson_intervals_and_ties_count_half() -> None:
    """Known answers."""
    assert share(np.array([True] * 10 + [False] * 90)) == pytest.approx([0.1, 0.0552, 0.1744], abs=1e-4)
    assert share(np.array([False] * 10))[:2] == [0.0, 0.0]
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == 0.875


@pytest.mark.parametrize("option", ["--limit 0", "--queries x", "--seed -1", "--eps 3", "--parts none"])
def test_an_impossible_option_is_refused(option, audit, capsys) -> None:
    """By argparse, which names it."""
    with pytest.raises(SystemExit) as refused:
        audit(*option.split())
    assert refused.value.code == 2 and option.split()[0] in capsys.readouterr().err


def test_the_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--t0 runs/audit/t0" in capsys.readouterr().out
