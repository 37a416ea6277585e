"""`awnet findings`: findings are listed and marked, marks propose a threshold, and only `publish` publishes one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from awnet.__main__ import main
from awnet.command.versions import contract_of
from server.core.contract import parse
from server.findings.chain import chains, segments, verify
from server.findings.finding import Finding, Image, Subject
from server.findings.journal import Journal
from server.findings.ocsf import document
from server.findings.quarantine import FOLDER, Quarantine, read_image
from server.findings.reading import findings
from tests.server.schema_2 import schema_2
from tests.server.tiny import encoded, noise, publish

KEEP = (1 << 30, 86_400.0)
IMAGES = 2000
RANK = 20  # of them over a threshold of 1 %


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with domains; the threshold of the pristine one is 0.5 and stands for 1 %."""
    repository = publish(tmp_path_factory.mktemp("models"), change=schema_2("pristine", "pool"))
    return repository / "awnet/1/model.onnx"


def finding(number: int, scores: list[float], model: Path, domain: str = "pristine", images: int = 0) -> Finding:
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    image = Image(
        "auto", "adversarial", max(scores), 0.5, 0.01, domain, True, None, "flag", "answered", sha256="a" * 64
    )
    return Finding(
        *(f"{number:032x}", Subject("image", f"client {number % 7}", None, "awnet", 1, sha256), "close"),
        *(1_700_000_000_000 + number, 1_700_000_000_000, 1_700_000_000_000, images or len(scores), 0, "a", "b", image),
        scores=tuple(sorted(scores)),
    )


@pytest.fixture
def journal(tmp_path: Path, model: Path) -> Path:
    """Forty findings of one image each, 0.51 to 0.9, and one of another model."""
    written = Journal(tmp_path / "findings", *KEEP)
    written.append(document(finding(n, [round(0.51 + 0.01 * n, 2)], model)) for n in range(40))
    written.append([document(finding(99, [0.99], Path(__file__)))])
    written.close()
    return tmp_path / "findings"


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["findings", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def mark_all(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(30):
        assert run("mark", journal, f"{n:032x}", "false_alarm", capsys=capsys)[0] == 0
    for n in range(30, 36):
        assert run("mark", journal, f"{n:032x}", "confirmed", capsys=capsys)[0] == 0


def test_a_mark_is_an_event_in_the_journal_and_survives_later_events(
    journal: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mark", journal, f"{3:032x}", "false_alarm", "--comment", "a new camera", capsys=capsys)[0] == 0
    later = Journal(journal, *KEEP)
    later.append([document(finding(3, [0.54], model))])
    later.close()
    status, printed = run("list", journal, "--most", 50, capsys=capsys)
    assert status == 0 and len(printed.splitlines()) == 41
    (line,) = [line for line in printed.splitlines() if "false_alarm" in line]
    assert "client 3" in line and "0.54" in line
    assert all(verify(chain).problems == [] for chain in chains(journal))
    (found,) = [found for found in findings(journal) if found.mark]
    assert found.id == f"{3:032x}"


def test_what_is_no_finding_is_not_marked(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run("mark", journal, "f" * 32, "confirmed", capsys=capsys)
    assert status == 2 and "no id of a finding begins with" in printed and f"awnet findings list {journal}" in printed
    status, printed = run("mark", journal, "000", "confirmed", capsys=capsys)
    assert status == 2 and "41 findings begin with '000'" in printed
    status, printed = run("list", tmp_path, capsys=capsys)
    assert status == 2 and "there is no journal" in printed


def test_marks_propose_a_threshold_with_its_rates_and_what_poison_could_do(
    journal: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is changed; the command that would is printed, and does publish it."""
    mark_all(journal, capsys)
    spaced = model.parents[2] / "a model.onnx"  # the printed command is quoted for a shell
    spaced.write_bytes(model.read_bytes())
    before = sorted(model.parents[2].rglob("*"))
    status, printed = run("propose", journal, "--model", spaced, "--images", IMAGES, capsys=capsys)
    assert status == 0 and sorted(model.parents[2].rglob("*")) == before
    assert "30 of them false alarms by mark, 4 flagged and not marked" in printed
    assert "proposed threshold  0.61, flags 0.95 %" in printed  # the 20th highest of 0.51 to 0.80
    assert "of 6 confirmed images it still flags 100 %" in printed
    assert "clients of the false alarms: 7." in printed
    assert "0.1 % (2): without them 0.6; by as many more up to 0.63" in printed  # the 22nd and the 18th highest
    assert "1 % (20): without them 0.5; by as many more up to 1: the attacker alone decides" in printed
    assert f"from {RANK} images on (1 %)" in printed
    (command,) = [line.strip() for line in printed.splitlines() if line.startswith("  awnet findings publish")]
    repository = model.parents[2] / "published"
    assert main([*shlex.split(command)[1:], "--out", str(repository)]) == 0
    assert f"serve it:  awnet serve --repository {repository} --model awnet" in capsys.readouterr().out
    made = (repository / "awnet/1/model.onnx").read_bytes()
    assert parse(contract_of_bytes(made)).domains[0].thresholds.adversarial.score == 0.61
    was, now = contract_of(model.read_bytes()), contract_of(made)
    assert now["domains"][1] == was["domains"][1] and now["thresholds"] == was["thresholds"]


def contract_of_bytes(model: bytes) -> Any:
    import orjson

    return orjson.dumps(contract_of(model)).decode()


def test_nothing_is_proposed_without_marks_or_without_need(
    journal: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = run("propose", journal, "--model", model, "--images", IMAGES, capsys=capsys)
    assert status == 1 and "of 40 findings of this model none is marked" in printed
    mark_all(journal, capsys)
    status, printed = run("propose", journal, "--model", model, "--images", 10 * IMAGES, capsys=capsys)
    assert status == 1 and "the present threshold is not too low" in printed
    status, printed = run("propose", journal, "--model", model, "--images", 2000, "--domain", "moon", capsys=capsys)
    assert status == 2 and "there are pristine, pool" in printed


def test_images_that_a_finding_kept_no_score_of_count_with_its_lowest(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Journal(tmp_path, *KEEP)
    written.append([document(finding(1, [0.7, 0.8, 0.9], model, images=40))])
    written.close()
    run("mark", tmp_path, f"{1:032x}", "false_alarm", capsys=capsys)
    status, printed = run("propose", tmp_path, "--model", model, "--images", IMAGES, capsys=capsys)
    assert status == 0 and "40 of them false alarms" in printed and "proposed threshold  0.7," in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--domain", "moon", "--adversarial", "0.9"], "no domain 'moon'"),
        (["--domain", "pristine", "--adversarial", "0.1"], "below the threshold of 'suspicious'"),
        (["--domain", "pristine", "--adversarial", "nan"], "a score from 0 to 1"),
    ],
)
def test_a_threshold_that_is_none_is_not_published(
    model: Path, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*options, "--fpr", "0.01", "--repository", tmp_path]
    status, printed = run("publish", model, *given, capsys=capsys)
    assert status == 2 and said in printed
    assert list(tmp_path.iterdir()) == []


def test_evidence_is_a_zip_whose_manifest_has_the_hash_of_each_part(
    journal: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines as the journal has them, all of the finding's, whatever chain they stand in."""
    identity = f"{3:032x}"
    run("mark", journal, identity, "confirmed", capsys=capsys)
    out = tmp_path / "evidence.zip"
    status, printed = run("evidence", journal, identity, "--model", model, "--out", out, capsys=capsys)
    assert status == 0 and hashlib.sha256(out.read_bytes()).hexdigest() in printed
    with zipfile.ZipFile(out) as held:
        manifest = json.loads(held.read("manifest.json"))
        assert set(manifest["files"]) == set(held.namelist()) - {"manifest.json"}
        for name, facts in manifest["files"].items():
            assert facts == {"sha256": hashlib.sha256(held.read(name)).hexdigest(), "bytes": len(held.read(name))}
        lines = held.read("events.jsonl").splitlines()
        read_image = b"".join(path.read_bytes() for chain in chains(journal) for path in segments(chain))
        assert len(lines) == 2 and all(line in read_image for line in lines)
        assert json.loads(held.read("finding.json"))["status"] == "In Progress"
        assert json.loads(held.read("thresholds.json"))["pristine"]["adversarial"] == {"score": 0.5, "fpr": 0.01}
        (chain,) = json.loads(held.read("journal.json"))
        assert chain["problems"] == [] and chain["head"]


def test_the_replay_gets_the_verdict_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in the bundle, with the image and the model that its hashes name."""
    image = encoded(noise(seed=5))
    facts = finding(1, [0.9], model).image
    assert facts is not None
    named = dataclasses.replace(finding(1, [0.9], model), image=dataclasses.replace(facts, data=image).settled())
    written = Journal(tmp_path / "findings", *KEEP)
    written.append([document(named)])
    written.close()
    assert run("evidence", tmp_path / "findings", "0", "--out", tmp_path / "e.zip", capsys=capsys)[0] == 0
    replay = zipfile.ZipFile(tmp_path / "e.zip").read("replay.txt").decode().splitlines()
    assert replay[0].endswith(hashlib.sha256(image).hexdigest())
    assert replay[1].endswith(hashlib.sha256(model.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IMAGE").write_bytes(image)
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    assert main(shlex.split(replay[2])[1:]) == 0
    assert "score" in capsys.readouterr().out


def keep(tmp_path: Path, model: Path, image: bytes, shape: tuple[int, ...] | None = None) -> Path:
    """A journal with one finding, whose image was kept."""
    facts = finding(1, [0.9], model).image
    assert facts is not None
    settled = dataclasses.replace(facts, data=image, shape=shape).settled()
    written = Journal(tmp_path / "findings", *KEEP)
    written.append([document(dataclasses.replace(finding(1, [0.9], model), image=settled))])
    written.close()
    quarantine = Quarantine(tmp_path / "findings", 1 << 20, 86_400.0)
    quarantine.start()
    quarantine.keep(str(settled.sha256), image)
    quarantine.stop()
    return tmp_path / "findings"


@pytest.mark.parametrize("tensor", [False, True])
def test_where_the_image_was_kept_the_replay_needs_the_bundle_and_the_model_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tensor: bool
) -> None:
    """A tensor's bytes have its hash, and a picture of the same pixels gets its verdict."""
    picture = noise(seed=5)
    pixels = np.asarray(picture).transpose(2, 0, 1)
    image = pixels.tobytes() if tensor else encoded(picture)
    journal = keep(tmp_path, model, image, pixels.shape if tensor else None)
    out = tmp_path / "e.zip"
    assert run("evidence", journal, "0", "--model", model, "--out", out, capsys=capsys)[0] == 0
    assert out.stat().st_mode & 0o777 == 0o600
    there = tmp_path / "there"
    with zipfile.ZipFile(out) as held:
        held.extractall(there)
        facts = json.loads(held.read("manifest.json"))["files"]
    sha256 = hashlib.sha256(image).hexdigest()
    assert facts["image.tensor" if tensor else "image.png"]["sha256"] == sha256
    if tensor:
        assert np.array_equal(np.asarray(PIL.Image.open(there / "image.png")).transpose(2, 0, 1), pixels)
    replay = (there / "replay.txt").read_text().splitlines()
    assert shlex.split(replay[0], comments=True) == ["sha256sum", "image.tensor" if tensor else "image.png"]
    monkeypatch.chdir(there)
    (there / "model.onnx").write_bytes(model.read_bytes())
    assert main(shlex.split(replay[2])[1:]) == 0
    again = json.loads(capsys.readouterr().out)
    (there / "sent.png").write_bytes(encoded(picture))
    assert main(["predict", "sent.png", *shlex.split(replay[2])[3:]]) == 0
    of_sender = json.loads(capsys.readouterr().out)
    own = {"file", "sha256"}
    assert {name: value for name, value in again.items() if name not in own} == {
        name: value for name, value in of_sender.items() if name not in own
    }


def test_evidence_can_be_had_without_the_image(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, out = keep(tmp_path, model, encoded(noise())), tmp_path / "e.zip"
    assert run("evidence", journal, "0", "--no-image", "--out", out, capsys=capsys)[0] == 0
    held = zipfile.ZipFile(out)
    assert "image.png" not in held.namelist()
    assert "predict IMAGE" in held.read("replay.txt").decode()


def test_a_finding_s_images_are_forgotten_and_its_events_are_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = encoded(noise())
    journal = keep(tmp_path, model, image)
    status, printed = run("forget", journal, "0", capsys=capsys)
    assert status == 0 and hashlib.sha256(image).hexdigest() in printed and "1 images removed" in printed
    assert read_image(journal, hashlib.sha256(image).hexdigest()) is None
    assert "0 images removed" in run("forget", journal, "0", capsys=capsys)[1]
    assert run("forget", journal, "ffff", capsys=capsys)[0] == 2
    assert len(findings(journal)) == 1 and verify(chains(journal)[0]).problems == []


def test_another_image_under_the_name_is_not_put_into_the_evidence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, out = keep(tmp_path, model, encoded(noise())), tmp_path / "e.zip"
    (journal / FOLDER / hashlib.sha256(encoded(noise())).hexdigest()).write_bytes(encoded(noise(seed=1)))
    assert run("evidence", journal, "0", "--out", out, capsys=capsys)[0] == 0
    assert "image.png" not in zipfile.ZipFile(out).namelist()
