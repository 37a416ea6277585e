"""`awnet doctor`: what would keep a server from serving is told before one is started."""

from __future__ import annotations

import hashlib
import shutil
import socket
import tomllib
from pathlib import Path

import pytest

from awnet.__main__ import main
from awnet.command import checks
from server.model_sources import transfer
from server.settings.settings import Settings
from tests.repository import ROOT
from tests.server.model_sources.static import serving
from tests.server.tiny import publish

QUIET = ["--port", "0", "--admin-port", "none"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return publish(tmp_path / "models")


def doctor(
    repository: Path, *options: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, tuple[str, str]]]:
    """(status, what was checked -> (state, what was found))."""
    status = main(["doctor", "--repository", str(repository), *options])
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    return status, {about: (state, found) for state, about, found in rows}


def test_a_machine_that_can_serve_passes_every_check(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, checks = doctor(repository, *QUIET, capsys=capsys)
    assert status == 0 and {state for state, _ in checks.values()} <= {"ok", "warn"}
    named = {"awnet", "processor", "runtime", "libraries", "extras", "descriptors", "port", "repository", "permissions"}
    assert named | {"model"} == set(checks)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    listed = {told.split(":")[0] for told in checks["extras"][1].split("; ")}
    assert listed == extras.keys() - {"site", "dev"}  # those two are for work on the checkout
    assert "golden values hold" in checks["model"][1] and "onnxruntime" in checks["runtime"][1]


def test_what_is_in_the_way_is_named_and_fails(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that is taken, a broken model, a wrong file of keys: status 1, and the other checks go on."""
    model = repository / "awnet/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    (tmp_path / "keys.toml").write_text("[keys.shop]\nsha256 = 'none'\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [
            "--port",
            str(taken.getsockname()[1]),
            "--admin-port",
            "none",
            "--api-keys",
            str(tmp_path / "keys.toml"),
        ]
        status, checks = doctor(repository, *options, capsys=capsys)
    assert status == 1
    assert {about for about, (state, _) in checks.items() if state == "fail"} == {"port", "keys", "model"}
    assert "its manifest says" in checks["model"][1]


def test_what_others_may_change_or_read_is_warned_of(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings fail nothing."""
    (repository / "awnet/1/model.onnx").chmod(0o666)
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    keys.chmod(0o644)
    status, checks = doctor(repository, *QUIET, "--api-keys", str(keys), capsys=capsys)
    assert status == 0
    assert checks["permissions"][0] == "warn" and "model.onnx can be written by every user" in checks["permissions"][1]
    assert checks["keys"][0] == "warn"
    _, checks = doctor(repository, *QUIET, "--host", "0.0.0.0", capsys=capsys)
    assert checks["keys"] == ("warn", "0.0.0.0 is reached from elsewhere, and nobody needs a key (--api-keys)")


def test_where_findings_go_is_checked_and_left_as_it_is(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status, checks = doctor(repository, *QUIET, "--findings-dir", str(tmp_path / "file"), capsys=capsys)
    assert status == 1 and checks["findings"] == ("fail", f"{tmp_path / 'file'} cannot be written to")
    secret = tmp_path / "secret"
    secret.write_text("a secret of thirty-two bytes, or so")
    secret.chmod(0o644)
    sent = ["--findings-webhook", "https://siem.example/in", "--findings-webhook-secret-file", str(secret)]
    status, checks = doctor(repository, *QUIET, "--findings-dir", str(tmp_path / "new/findings"), *sent, capsys=capsys)
    assert status == 0 and checks["findings"][0] == "ok" and not (tmp_path / "new").exists()
    assert checks["webhook"] == ("warn", f"the secret {secret}; every user of this machine reads it")
    secret.write_text("short")
    status, checks = doctor(repository, *QUIET, "--findings-dir", str(tmp_path / "new/findings"), *sent, capsys=capsys)
    assert status == 1 and checks["webhook"][0] == "fail" and "needs 24" in checks["webhook"][1]


def test_a_model_source_is_fetched_as_a_server_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the version that it names is the one that is opened."""
    model = publish(tmp_path / "published") / "awnet/1/model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    publish(tmp_path / "models", "7", seed=1)
    wrong = ["--model-source", f"file://{model}#sha256={'0' * 64}"]
    status, checks = doctor(tmp_path / "models", *QUIET, *wrong, capsys=capsys)
    assert status == 1 and checks["source"][0] == "fail" and digest in checks["source"][1]
    status, checks = doctor(
        tmp_path / "models", *QUIET, "--model-source", f"file://{model}#sha256={digest}", capsys=capsys
    )
    assert status == 0
    assert checks["source"] == ("ok", f"file://{model}#sha256={digest}: version 8 of awnet")
    assert checks["model"][1].startswith("awnet version 8:")


def test_a_source_that_does_not_answer_is_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline and each try are told while it is asked; what is there already is looked at all the same."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)
    publish(tmp_path / "models")
    with serving() as web:
        web.routes["/model.onnx"] = lambda handler: handler.begin(503, 0)
        given = ["--model-source", f"{web.url}/model.onnx#sha256={'0' * 64}", "--model-source-seconds", "40"]
        status = main(["doctor", "--repository", str(tmp_path / "models"), *QUIET, *given])
        assert len(web.asked) == transfer.TRIES
    out, err = capsys.readouterr()
    last = ["fail", "model", "not opened: its source has not been fetched"]
    assert status == 1 and out.splitlines()[-1].split(None, 2) == last
    assert out.count("given up after 5 tries") == 1 and "ok    repository" in out
    assert "40 s at most" in err.splitlines()[0] and err.count("tried again") == transfer.TRIES - 1


def test_an_empty_repository_and_one_without_the_model_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(publish(tmp_path / "other", name="other"), tmp_path / "others")
    for folder in ("empty", "others", "nowhere"):
        status, checks = doctor(tmp_path / folder, *QUIET, capsys=capsys)
        assert status == 1 and checks["repository"][0] == checks["model"][0] == "fail"


def test_a_model_file_is_checked_in_place_of_a_repository(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `awnet serve --repository FILE` takes it; others who may write it are warned of, and a key refuses it."""
    file = repository / "awnet/1/model.onnx"
    file.chmod(0o666)
    status, checks = doctor(file, *QUIET, capsys=capsys)
    assert status == 0 and checks["repository"] == ("ok", f"{file}: awnet 1") and checks["model"][0] == "ok"
    assert checks["permissions"] == ("warn", f"{file} can be written by every user of this machine")
    status, checks = doctor(file, *QUIET, "--signing-key", str(file), capsys=capsys)
    assert status == 1 and checks["repository"] == ("fail", f"{file} is a file alone, which has no signature")


def test_settings_that_cannot_be_read_are_told_as_the_server_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", "tritn"]) == 2
    assert capsys.readouterr().err.startswith("setting engine (AWNET_ENGINE): ")


@pytest.mark.parametrize(
    ("flags", "state", "said"),
    [("flags : fpu avx2 fma", "ok", "avx2 fma"), ("flags : fpu sse", "warn", "no vector instructions")],
)
def test_a_processor_without_wide_vectors_is_warned_of(
    flags: str, state: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"model name : A processor\n{flags}\n\nmodel name : A processor\n{flags}\n")
    check = checks.processor(tmp_path / "cpuinfo")
    assert check.state == state and check.found.startswith("A processor, ") and check.found.endswith(said)


def test_two_runtimes_that_overwrite_each_other_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """`onnxruntime` and `onnxruntime-gpu` bring the same files, and whichever came last is run."""
    monkeypatch.setattr(checks, "version", lambda name: "1.31.1")
    (runtime, *_) = checks.libraries()
    assert runtime.state == "warn" and "both write the same files" in runtime.found


def test_fewer_descriptors_than_connections_are_warned_of() -> None:
    assert checks.descriptors(Settings(max_connections=65_536)).state == "warn"  # type: ignore[call-arg]
