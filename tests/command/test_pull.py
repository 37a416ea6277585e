"""`awnet pull`: what it prints, how it ends, and what it refuses before it asks anybody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from awnet.__main__ import main
from export.repository.repository import publish as export_publish
from server.model_sources import transfer
from tests.server.model_sources.conftest import files
from tests.server.model_sources.static import Static, body, serving
from tests.server.tiny import publish

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return (publish(tmp_path / "published") / "awnet/1/model.onnx").read_bytes()


@pytest.fixture
def web(model: bytes) -> Iterator[Static]:
    with serving() as server:
        server.routes["/model.onnx"] = body(model)
        yield server


def test_what_was_fetched_is_told_with_how_to_pin_it(
    web: Static, model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line can be given to a server as it is."""
    arguments = ["pull", f"{web.url}/model.onnx", "--to", str(tmp_path / "models"), "--name", "ours", "--version", "7"]
    assert main(arguments) == 0
    digest = hashlib.sha256(model).hexdigest()
    assert capsys.readouterr() == (
        f"version 7 of ours was fetched: {tmp_path}/models/ours/7\npinned: {web.url}/model.onnx#sha256={digest}\n",
        f"fetching {web.url}/model.onnx\n",
    )
    assert main([*arguments, "--digest", f"sha256:{digest}"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert len(web.asked) == 1


def test_without_a_source_it_does_what_a_server_would(
    web: Static, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an init container does; neither pinned nor signed, nothing is asked."""
    monkeypatch.setenv("AWNET_REPOSITORY", str(tmp_path / "models"))
    monkeypatch.setenv("AWNET_MODEL_SOURCE", f"{web.url}/model.onnx")
    assert main(["pull"]) == 2
    assert "#sha256=" in capsys.readouterr().err and web.asked == []
    monkeypatch.setenv("AWNET_MODEL_SOURCE", f"{web.url}/model.onnx#sha256={hashlib.sha256(model).hexdigest()}")
    assert main(["pull", "--quiet"]) == 0
    assert files(tmp_path / "models") == [f"awnet/1/{name}" for name in ("manifest.json", "model.onnx", "source.json")]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "SOURCE is missing"),
        (["--to", "x"], "--to needs SOURCE"),
        (["model.onnx"], "SOURCE must begin with"),
        (["https://host/m.onnx", "--digest", "12"], "--digest must be"),
        ([f"https://host/m.onnx#sha256={'0' * 64}", "--digest", "1" * 64], "another than that of SOURCE"),
        (["https://host/m.onnx", "--name", "../x"], "is no model name"),
        (["https://host/m.onnx", "--version", "0"], "a version is a number"),
        (["https://host/m.onnx", "--seconds", "0"], "--seconds must be"),
        (["https://host/m.onnx", "--seconds", "nan"], "--seconds must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", *arguments]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_triton_is_told_of_it_where_it_has_a_configuration(web: Static, model: bytes, tmp_path: Path) -> None:
    """Contract and hash, which a server before Triton reads there, are there before the version is."""
    published = export_publish(model, tmp_path / "models")
    other = (publish(tmp_path / "other", seed=3) / "awnet/1/model.onnx").read_bytes()
    web.routes["/model.onnx"] = body(other)
    assert main(["pull", f"{web.url}/model.onnx", "--to", str(tmp_path / "models"), "--quiet"]) == 0
    made = (published.parent / "config.pbtxt").read_text()
    export_publish(other, tmp_path / "same", version=2)
    expected = (tmp_path / "same/awnet/config.pbtxt").read_text()
    (parameter,) = [line for line in expected.splitlines() if '"sha256.2"' in line]
    assert parameter in made and '"contract.1"' in made and '"contract.2"' in made


def test_a_terminal_sees_how_far_it_is(
    web: Static, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["pull", f"{web.url}/model.onnx", "--to", str(tmp_path / "models")]) == 0
    said = capsys.readouterr().err
    assert "100 %" in said and "MB/s" in said and "\n\r" in said and said.endswith("\n")


def test_what_could_not_be_fetched_is_told_in_one_line(
    web: Static, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", f"{web.url}/nothing", "--to", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err
    assert "404" in said and said.count("\n") == 2 and said.startswith(f"fetching {web.url}/nothing\n")
    assert files(tmp_path / "models") == []


def test_who_gives_a_path_is_told_its_address(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the first thing that one types."""
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "published/awnet/1", "--to", "models"]) == 2
    address = capsys.readouterr().err.split()[-1]
    assert address == f"file://{tmp_path}/published/awnet/1"
    assert main(["pull", address, "--to", "models"]) == 0


def test_what_is_tried_again_is_told_meanwhile(
    web: Static, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that cannot be reached is no silence of ten seconds; --quiet is told of the end alone."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)
    nobody = "http://127.0.0.1:1/model.onnx"
    assert main(["pull", nobody, "--to", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in said] == [
        f"fetching {nobody}",
        *["tried again"] * (transfer.TRIES - 1),
        f"given up after {transfer.TRIES} tries",
    ]
    assert all(nobody in line and "Errno" not in line for line in said)
    assert main(["pull", nobody, "--to", str(tmp_path / "models"), "--quiet"]) == 1
    assert capsys.readouterr().err.splitlines() == said[-1:]
