"""What the server reads from a model repository, and what it refuses to hand to a runtime."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness.report import bundled_model
from server.engines.onnx_scan import scan
from server.engines.repository import MAX_MANIFEST_BYTES, Repository
from server.errors import AWNetError, ContractError, ManifestError, ModelNotFound, StartupError
from tests.server.tiny import ROOT, graph, manifest_of, publish, spoilt, write
from tests.waiting import eventually


def test_a_version_is_read_as_it_was_published(tmp_path: Path) -> None:
    """Its bytes, and their hash."""
    publish(tmp_path)
    artifact = Repository(tmp_path).read("awnet", 1)
    assert artifact.data == (tmp_path / "awnet/1/model.onnx").read_bytes()
    assert (
        artifact.sha256 == json.loads((tmp_path / "awnet/1/manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    )


def test_the_bundled_model_can_be_read() -> None:
    """The manifest in this repository is that of its model, and the scan finds nothing in it."""
    Repository(ROOT / "model_repository").read("awnet", int(bundled_model().name))


def test_the_catalogue_lists_what_could_be_a_version(tmp_path: Path) -> None:
    """By number, not by name; no staging folders, no other files, no empty folders."""
    for version in ("2", "10", "9"):
        publish(tmp_path, version)
    publish(tmp_path, "1", name="other")
    for folder in ("awnet/11", "awnet/.partial-12", "awnet/012", "awnet/0", "awnet/x", ".hidden/1", "empty"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "awnet/11":
            (tmp_path / folder / "model.onnx").touch()
    (tmp_path / "awnet/13").touch()
    (tmp_path / "awnet/config.pbtxt").touch()
    assert Repository(tmp_path).catalogue() == {"awnet": (2, 9, 10), "other": (1,)}


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    """And polling outlives it."""
    with pytest.raises(ModelNotFound, match="nowhere"):
        Repository(tmp_path / "nowhere").catalogue()
    assert Repository(tmp_path / "nowhere").fingerprint() == ()


def test_the_fingerprint_changes_with_every_file_and_with_nothing_else(tmp_path: Path) -> None:
    """A file that is added, written, touched, replaced by one of the same size and time, or removed."""
    publish(tmp_path)
    publish(tmp_path, "2")
    repository = Repository(tmp_path)
    seen = [repository.fingerprint()]
    folder = tmp_path / "awnet/2"

    def changed() -> bool:
        seen.append(repository.fingerprint())
        return seen[-1] not in seen[:-1]

    assert repository.fingerprint() == seen[0]
    (tmp_path / "awnet/config.pbtxt").write_text("x")
    assert repository.fingerprint() == seen[0]
    (folder / "manifest.json.sig").write_text("x")
    assert changed()
    old = (folder / "model.onnx").stat()
    probe = tmp_path / "probe"

    def later() -> bool:
        probe.write_text("x")
        return probe.stat().st_ctime_ns > old.st_ctime_ns

    eventually(later)  # the file system's clock has ticked
    (folder / "model.onnx").write_bytes(b"y" * old.st_size)
    os.utime(folder / "model.onnx", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert changed()
    (folder / "manifest.json").unlink()
    assert changed()
    ones = [[mark for mark in marks if mark[:2] == ("awnet", 1)] for marks in seen]
    assert all(marks == ones[0] for marks in ones)  # the other version is not touched by any of this


@pytest.mark.parametrize("name", ["", "..", "../awnet", "a/b", ".hidden", "a" * 200])
def test_a_name_does_not_leave_the_repository(tmp_path: Path, name: str) -> None:
    """Whatever a client makes up."""
    publish(tmp_path)
    with pytest.raises(ModelNotFound):
        Repository(tmp_path / "awnet").read(name, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 40_000,
        '{"schema_version": 1}',
        " " * (MAX_MANIFEST_BYTES + 1),
        "\xff",
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """As a ManifestError, whatever is in the file."""
    publish(tmp_path)
    (tmp_path / "awnet/1/manifest.json").write_text(text, "latin-1")
    with pytest.raises(ManifestError):
        Repository(tmp_path).read("awnet", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"sha256": "x" * 64},
        {"sha256": None},
        {"bytes": 1},
        {"bytes": -1},
        {"bytes": True},
        {"bytes": "1000"},
        {"bytes": 10**30},
    ],
)
def test_a_manifest_that_does_not_fit_its_file_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """Hash and size both have to be right."""
    folder = publish(tmp_path) / "awnet/1"
    manifest = manifest_of(folder, (folder / "model.onnx").read_bytes())
    manifest["files"]["model.onnx"].update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError):
        Repository(tmp_path).read("awnet", 1)


def test_a_version_cannot_be_passed_off_as_another(tmp_path: Path) -> None:
    """Or an old one with known faults could be put back under a new number, signature and all."""
    publish(tmp_path)
    (tmp_path / "awnet/1").rename(tmp_path / "awnet/2")
    with pytest.raises(ManifestError, match="'awnet' 1"):
        Repository(tmp_path).read("awnet", 2)


def signed(home: Path, key: Ed25519PrivateKey, text: bytes | None = None) -> None:
    folder = home / "awnet/1"
    made = base64.b64encode(key.sign((folder / "manifest.json").read_bytes()))
    (folder / "manifest.json.sig").write_bytes(made if text is None else text)


def public(path: Path, key: Ed25519PrivateKey) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_with_a_key_only_its_signature_is_taken(tmp_path: Path) -> None:
    """Absent, of another key, of another manifest, no base64, too long: all refused."""
    key = Ed25519PrivateKey.generate()
    home = publish(tmp_path / "home")
    repository = Repository(home, public(tmp_path / "key.pem", key))
    with pytest.raises(ManifestError, match=r"no manifest\.json\.sig"):
        repository.read("awnet", 1)
    for text in (b"", b"!", b"QUJD", b"A" * 5000, base64.b64encode(bytes(64))):
        signed(home, key, text)
        with pytest.raises(ManifestError):
            repository.read("awnet", 1)
    signed(home, Ed25519PrivateKey.generate())
    with pytest.raises(ManifestError, match="signing key"):
        repository.read("awnet", 1)
    signed(home, key)
    repository.read("awnet", 1)
    write(home / "awnet/1", graph(5).SerializeToString())
    with pytest.raises(ManifestError, match="signing key"):
        repository.read("awnet", 1)


def test_without_a_key_a_signature_is_not_looked_at(tmp_path: Path) -> None:
    """Those who sign and those who check are free to begin at different times."""
    home = publish(tmp_path)
    signed(home, Ed25519PrivateKey.generate(), b"!")
    Repository(home).read("awnet", 1)


def test_a_key_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """A key that silently checks nothing would be worse than none."""
    other = tmp_path / "other.pem"
    other.write_bytes(
        generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    for key in (tmp_path / "absent.pem", rubbish, other):
        with pytest.raises(ManifestError, match=key.name):
            Repository(tmp_path, key)


def external() -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "far")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def branches(inner: onnx.GraphProto, depth: int = 1) -> onnx.GraphProto:
    """`inner` inside of so many Ifs."""
    for n in range(depth):
        node = helper.make_node("If", ["c"], [f"y{n}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], f"level{n}", [], [])
    return inner


def constant(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "inner", [], [])


def model_of(inner: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(inner)


def outside() -> dict[str, onnx.ModelProto]:
    """Models that reach outside of their file, each in another place."""
    found = {}
    plain = graph()
    plain.graph.initializer.append(external())
    found["an initializer"] = plain
    only_location = graph()
    only_location.graph.initializer[0].data_location = TensorProto.EXTERNAL
    found["a location without data"] = only_location
    only_data = graph()
    only_data.graph.initializer[0].external_data.add(key="location", value="w.bin")
    found["data without a location"] = only_data
    found["a constant"] = model_of(constant(external()))
    found["a branch"] = model_of(branches(constant(external()), 3))
    listed = helper.make_node("Anything", [], ["x"])
    attribute = listed.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(external())
    found["a list of tensors"] = model_of(helper.make_graph([listed], "g", [], []))
    graphs = helper.make_node("Anything", [], ["x"])
    attribute = graphs.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(constant(external()))
    found["a list of graphs"] = model_of(helper.make_graph([graphs], "g", [], []))
    sparse = helper.make_node("Anything", [], ["x"])
    attribute = sparse.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(external())
    found["a sparse tensor"] = model_of(helper.make_graph([sparse], "g", [], []))
    sparse_weights = graph()
    sparse_weights.graph.sparse_initializer.add().indices.CopyFrom(external())
    found["sparse weights"] = sparse_weights
    function = graph()
    body = helper.make_node("Constant", [], ["x"], value=external())
    function.functions.append(helper.make_function("", "f", [], ["x"], [body], [helper.make_opsetid("", 20)]))
    found["a function"] = function
    training = graph()
    training.training_info.add().initialization.CopyFrom(constant(external()))
    found["training data"] = training
    foreign = helper.make_graph([helper.make_node("Op", [], ["x"], domain="com.example")], "g", [], [])
    found["an operator"] = model_of(foreign)
    found["an operator in a branch"] = model_of(branches(foreign, 2))
    called = graph()
    called.functions.append(helper.make_function("com.example", "f", [], ["x"], [], [helper.make_opsetid("", 20)]))
    found["a function of another domain"] = called
    inside = graph()
    body = helper.make_node("Op", [], ["x"], domain="com.microsoft")
    inside.functions.append(helper.make_function("", "f", [], ["x"], [body], [helper.make_opsetid("", 20)]))
    found["an operator in a function"] = inside
    return found


@pytest.mark.parametrize("place", outside())
def test_a_model_that_reaches_outside_of_its_file_is_refused(place: str) -> None:
    """Wherever it hides it."""
    with pytest.raises(ContractError, match=r"outside|com\."):
        scan(outside()[place].SerializeToString())


def test_what_stays_inside_is_let_through() -> None:
    """Both names of ONNX's own domain, branches, functions, sparse weights with their data."""
    good = numpy_helper.from_array(np.zeros(3, np.float32), "near")
    scan(graph().SerializeToString())
    scan(model_of(branches(constant(good), 5)).SerializeToString())
    named = graph()
    named.graph.node[0].domain = "ai.onnx"
    scan(named.SerializeToString())
    default = graph()
    default.graph.initializer[0].data_location = TensorProto.DEFAULT
    scan(default.SerializeToString())


def test_a_model_that_nests_without_end_is_refused() -> None:
    """Before the stack of anything is full; a thousand levels cost no more than the bytes that they take."""
    data = b""
    for _ in range(1000):  # node in graph, attribute in node, graph in attribute
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + length(len(data)) + data
    with pytest.raises(ContractError, match="deeper"):
        scan(b"\x3a" + length(len(data)) + data)


def length(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_broken_bytes_end_in_a_refusal_and_in_nothing_else() -> None:
    """Cut anywhere, or with bytes changed at random: refused, or harmless, never another exception."""
    data = graph().SerializeToString()
    refused = 0
    for some in [*spoilt(data), b"\xff" * 100, b"\x3b\x3c", b"\x00", b"\x3a\xff\xff\xff\xff\x0f"]:
        try:
            scan(some)
        except AWNetError as error:
            assert isinstance(error, ContractError)
            refused += 1
    assert refused > 100


SPECIAL = {"FIFO": lambda path: os.mkfifo(path), "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", "manifest.json.sig"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str, file: str) -> None:
    """Opening a FIFO waits for a writer and a device has no end: a reload would never come back."""
    publish(tmp_path)
    key = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    folder = tmp_path / "awnet/1"
    signature = base64.b64encode(key.sign((folder / "manifest.json").read_bytes()))
    (folder / "manifest.json.sig").write_bytes(signature)
    signed = Repository(tmp_path, tmp_path / "public.pem")
    signed.read("awnet", 1)
    (folder / file).unlink()
    SPECIAL[kind](folder / file)
    with pytest.raises(StartupError, match="it is no regular file"):
        signed.read("awnet", 1)


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_key_that_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "public.pem")
    with pytest.raises(ManifestError, match="cannot be read"):
        Repository(tmp_path, tmp_path / "public.pem")


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    """A mounted ConfigMap or Secret is nothing else."""
    publish(tmp_path)
    folder = tmp_path / "awnet/1"
    for name in ("model.onnx", "manifest.json"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    Repository(tmp_path).read("awnet", 1)
