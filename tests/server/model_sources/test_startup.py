"""A server with a model source serves that version and no other, and does not start where it cannot be trusted."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from awnet.local import Local, StartError
from benchmarks.harness.processes import Server
from server.errors import SourceError
from server.settings.options import SettingsError, settings_of
from server.settings.settings import Settings
from tests.repository import ROOT
from tests.server.model_sources.conftest import Fetch, files
from tests.server.model_sources.static import Static, body, trickle
from tests.server.tiny import Running, publish
from tests.waiting import eventually

SIGNED = [f"awnet/4/{name}" for name in ("manifest.json", "manifest.json.sig", "model.onnx", "source.json")]


def serve(**settings: object) -> subprocess.CompletedProcess[str]:
    """A server that is not expected to start."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWNET_")}
    given = {f"AWNET_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "server", "--port", "0", "--admin-port", "none"]
    return subprocess.run(command, cwd=ROOT, env=clean | given, capture_output=True, text=True, timeout=120)


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    """The publisher's; `public.pem` is what servers get."""
    made = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(
        made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return made


def signed(folder: Path, key: Ed25519PrivateKey) -> Path:
    document = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json.sig").write_bytes(base64.b64encode(key.sign(document)) + b"\n")
    return folder


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_serves_what_its_source_names(
    repository: Path, web: Static, model: bytes, digest: str, workers: int
) -> None:
    """Although a newer version is there, whoever of its processes answers; and it starts again without its source."""
    publish(repository, "9", seed=3)
    web.routes["/model.onnx"] = body(model)
    source = f"{web.url}/model.onnx#sha256={digest}"
    for _ in range(2):
        with Running(repository, model_source=source, workers=workers, threads=1) as server:
            server.wait_ready()
            for _ in range(4):  # whichever process answers
                described = server.http.get("/model").json()
                assert (described["version"], described["sha256"]) == ("10", digest)
        assert len(web.asked) == 1
        web.routes["/model.onnx"] = body(b"", 500)
        publish(repository, "11", seed=5)


@pytest.mark.process
def test_a_source_that_cannot_be_fetched_ends_the_start_in_one_line(
    repository: Path, web: Static, tmp_path: Path
) -> None:
    publish(repository)
    done = serve(repository=repository, model_source=f"{web.url}/model.onnx?sig=secret#sha256={'0' * 64}")
    assert done.returncode == 1
    begun, ended = done.stderr.splitlines()
    assert f"model source: fetching {web.url}/model.onnx#sha256=" in begun
    assert "Model not fetched" in ended and "404" in ended
    assert "secret" not in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_while_it_fetches_stops(
    repository: Path, web: Static, tmp_path: Path, sent: signal.Signals
) -> None:
    """At once, with status 0 as ever, and leaves nothing."""
    web.routes["/model.onnx"] = trickle(head=False)
    source = f"{web.url}/model.onnx#sha256={'0' * 64}"
    with Server(tmp_path, repository=repository, model_source=source) as server:
        eventually(lambda: list(repository.glob("awnet/.partial-*/awnet/1/model.onnx")))
        assert server.stop(sent) == 0
        assert "Traceback" not in server.text()
    assert files(repository) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model_source": "https://host/model.onnx"}, "#sha256="),
        ({"model_source": "oci://host/a:4"}, "@sha256:"),
        ({"model_source": f"hf://o/r/m.onnx@{'0' * 40}"}, "#sha256="),
        ({"model_source": "model.onnx"}, "must begin with"),
        ({"model_source": "https://u:secret@host/m.onnx"}, "without a user"),
        ({"model_source": f"https://host/m.onnx#sha256={'0' * 64}", "engine": "triton"}, "Triton"),
        ({"model_source": f"https://host/m.onnx#sha256={'0' * 64}", "repository": None}, "needs repository"),
    ],
)
def test_settings_that_could_fetch_anything_are_refused(
    settings: dict[str, str], why: str, no_variables: None, tmp_path: Path
) -> None:
    """Before anything is asked; with a signing key a source need not be pinned."""
    given = {"repository": str(tmp_path), **settings}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(SettingsError, match=why) as raised:
        settings_of(given)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    if "#sha256=" in why:
        settings_of(given | {"signing_key": "key.pem"})


def test_a_signed_version_is_taken_unpinned_as_the_number_that_was_signed(
    fetch: Fetch, repository: Path, web: Static, tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    folder = signed(publish(tmp_path / "published", "4") / "awnet/4", key)
    for name in ("model.onnx", "manifest.json", "manifest.json.sig"):
        web.routes[f"/a/{name}"] = body((folder / name).read_bytes())
    public = tmp_path / "public.pem"
    assert fetch(f"{web.url}/a/model.onnx", signing_key=public).version == 4
    assert files(repository) == SIGNED
    assert not fetch(f"{web.url}/a/model.onnx", signing_key=public).new
    assert not fetch(f"file://{folder}", signing_key=public).new
    with pytest.raises(SourceError, match="version 4, as its signature has it"):
        fetch(f"{web.url}/a/model.onnx", signing_key=public, version=5)
    with pytest.raises(SourceError, match="is that of 'awnet'"):
        fetch(f"{web.url}/a/model.onnx", signing_key=public, name="other")


@pytest.mark.parametrize("spoil", ["unsigned", "other key", "other model", "not a manifest", "renumbered"])
def test_what_is_not_signed_leaves_nothing(
    fetch: Fetch, repository: Path, tmp_path: Path, key: Ed25519PrivateKey, spoil: str
) -> None:
    folder = signed(publish(tmp_path / "published", "4") / "awnet/4", key)
    if spoil == "unsigned":
        (folder / "manifest.json.sig").unlink()
    elif spoil == "other key":
        signed(folder, Ed25519PrivateKey.generate())
    elif spoil == "other model":
        (folder / "model.onnx").write_bytes((publish(tmp_path / "b", "4", seed=2) / "awnet/4/model.onnx").read_bytes())
    elif spoil == "not a manifest":
        (folder / "manifest.json").write_text("[]")
    else:
        document = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(document | {"version": 9}))
    with pytest.raises(SourceError):
        fetch(f"file://{folder}", signing_key=tmp_path / "public.pem")
    assert files(repository) == []


def test_a_model_in_this_process_has_the_same_source(
    repository: Path, web: Static, model: bytes, digest: str, no_variables: None
) -> None:
    """`awnet predict` opens what `awnet serve` would."""
    web.routes["/model.onnx"] = body(model)

    async def opened(sha256: str) -> str:
        settings = Settings(model_source=f"{web.url}/model.onnx#sha256={sha256}", repository=repository, threads=1)
        async with Local(settings) as local:
            return local.service.models.latest().sha256

    assert asyncio.run(opened(digest)) == digest
    with pytest.raises(StartError, match="Model not fetched"):
        asyncio.run(opened("0" * 64))
