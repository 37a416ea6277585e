"""The bill of materials names each locked package and each model, with the hashes that pip and the server insist on."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from deploy.sbom import LockError, document, main, packages
from tests.server.tiny import ROOT, publish

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_is_named_with_all_its_hashes(lock: Path) -> None:
    """Counted in the lock by other means than the program's."""
    text = lock.read_text("utf-8")
    found = packages(text)
    assert {f"{c['name']}=={c['version']}" for c in found} == set(re.findall(r"^[^\s#]+==[^\s;]+", text, re.MULTILINE))
    assert sorted(h["content"] for c in found for h in c["hashes"]) == sorted(re.findall(r"sha256:(\w{64})", text))
    assert all(c["hashes"] and c["purl"].startswith("pkg:pypi/") for c in found)


def test_every_model_is_named_with_the_hash_of_its_file(tmp_path: Path) -> None:
    """As its manifest has it."""
    publish(tmp_path)
    bill = document(LOCKS[0].read_text("utf-8"), tmp_path)
    (model,) = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    digest = hashlib.sha256((tmp_path / "awnet/1/model.onnx").read_bytes()).hexdigest()
    assert (model["name"], model["version"], model["hashes"][0]["content"]) == ("awnet", "1", digest)


def test_the_bill_is_one_document_with_its_own_references(tmp_path: Path) -> None:
    """Each component has a name of its own, and the project depends on all of them; twice the same bytes."""
    for out in (tmp_path / "a/sbom.json", tmp_path / "b.json"):
        assert main(["--lock", str(LOCKS[-1]), "--repository", str(tmp_path), "--out", str(out)]) == 0
    assert (tmp_path / "a/sbom.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    bill = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(set(references)) == len(references)
    assert bill["dependencies"] == [{"ref": "awnet", "dependsOn": references}]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])


@pytest.mark.parametrize(
    "lock", ["numpy==2.0\n", "--index-url http://example\n", "    --hash=sha256:" + "a" * 64 + "\n", "numpy>=2\n"]
)
def test_what_is_no_lock_is_refused(lock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A package without a hash above all: whatever it is, it could be anything tomorrow."""
    with pytest.raises(LockError):
        packages(lock)
    (tmp_path / "lock.txt").write_text(lock, "utf-8")
    assert main(["--lock", str(tmp_path / "lock.txt"), "--out", str(tmp_path / "bill.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "bill.json").exists()


def test_no_lock_lets_a_package_in_without_a_hash() -> None:
    """And every environment and the image are installed from a lock, with hashes required."""
    assert {lock.stem for lock in LOCKS} >= {"server", "server-cpu", "dev", "triton"}
    assert "--require-hashes --no-deps" in (ROOT / "Makefile").read_text("utf-8")
    assert "--no-deps --require-hashes" in (ROOT / "Dockerfile").read_text("utf-8")
