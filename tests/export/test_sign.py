"""Signing a repository: what the exporter signs, the server takes, and nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from export.sign import main
from server.engines.repository import Repository
from server.errors import ManifestError
from tests.server.tiny import graph, publish, write


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; the public one lies beside it as key.pub.pem."""
    path = tmp_path / "key.pem"
    assert main(["--new-key", str(path)]) == 0
    return path


def test_a_signed_version_is_taken_and_an_unsigned_one_is_not(tmp_path: Path, key: Path) -> None:
    """From the command line to the server."""
    home = publish(tmp_path / "home")
    publish(home, "2", seed=1)
    assert main(["--key", str(key), "--repository", str(home), "--name", "awnet", "--version", "1"]) == 0
    server = Repository(home, tmp_path / "key.pub.pem")
    server.read("awnet", 1)
    with pytest.raises(ManifestError, match="sig"):
        server.read("awnet", 2)
    assert main(["--key", str(key), "--repository", str(home)]) == 0
    server.read("awnet", 2)


def test_the_private_key_is_for_its_owner_alone(key: Path) -> None:
    """And is never overwritten."""
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    assert main(["--new-key", str(key)]) == 2
    assert key.read_bytes() == before
    assert b"PRIVATE" not in key.with_suffix(".pub.pem").read_bytes()


def test_a_manifest_of_another_model_is_not_signed(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signature says that these files were meant; it is not given to what does not fit."""
    home = publish(tmp_path / "home")
    (home / "awnet/1/model.onnx").write_bytes(graph(9).SerializeToString())
    assert main(["--key", str(key), "--repository", str(home)]) == 2
    assert "not the manifest of the model beside it" in capsys.readouterr().err
    assert not (home / "awnet/1/manifest.json.sig").exists()


def test_a_version_without_a_manifest_gets_one(tmp_path: Path, key: Path) -> None:
    """So that what was exported before there were manifests can be served."""
    home = tmp_path / "home"
    write(home / "awnet/3", graph().SerializeToString(), manifest=False)
    assert main(["--key", str(key), "--repository", str(home)]) == 0
    Repository(home, tmp_path / "key.pub.pem").read("awnet", 3)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ([], True),
        (["--key", "a.pem", "--new-key", "b.pem"], True),
        (["--key", "a.pem", "--version", "1"], True),
        (["--key", "absent.pem"], False),
        (["--key", "KEY", "--repository", "absent"], False),
        (["--key", "KEY", "--repository", "HOME", "--name", "other"], False),
        (["--key", "KEY", "--repository", "HOME", "--name", "awnet", "--version", "9"], False),
        (["--key", "PUBLIC", "--repository", "HOME"], False),
    ],
)
def test_what_cannot_be_signed_is_told_in_one_line(
    tmp_path: Path, key: Path, options: list[str], wrong: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2 and without a traceback; `wrong` options already by argparse."""
    names = {"KEY": key, "PUBLIC": key.with_suffix(".pub.pem"), "HOME": publish(tmp_path / "home")}
    arguments = [str(names.get(option, option)) for option in options]
    if wrong:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
