"""A model in a registry: Debian's docker-registry for what is right, a web server of ours for what is wrong."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.errors import SourceError
from server.model_sources import oci, origins
from tests.requires import requires
from tests.server.model_sources.conftest import Fetch, files
from tests.server.model_sources.registry import HASHED, MODELPACK, PASSWORD, Registry, Tokens, docker_config
from tests.server.model_sources.static import Static, body, redirect, serving
from tests.server.tiny import publish
from tests.waiting import eventually

VERSION = ["awnet/1/manifest.json", "awnet/1/model.onnx", "awnet/1/source.json"]


@pytest.fixture(scope="module")
def registry(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes docker's config.json with the password for a host."""

    def write(host: str, given: str = PASSWORD) -> None:
        docker_config(tmp_path / "docker", host, given)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    return write


def archive(data: bytes, name: str, mode: str = "w", *before: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for member in before:
            tar.addfile(member)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@requires("registry")
def test_a_modelpack_by_tag_and_by_digest(
    fetch: Fetch, registry: Registry, repository: Path, model: bytes, digest: str
) -> None:
    """The model beside files that are none; a digest names it for ever, and is not asked for again."""
    layers = [
        registry.layer(b"# AW-Net", "README.md", "application/vnd.cncf.model.doc.v1.raw"),
        registry.layer(b"# More", "docs/README.md", "application/vnd.cncf.model.doc.v1.tar+zstd"),
        registry.layer(model, "awnet/model.onnx"),
    ]
    manifest = registry.push(layers, "4", artifactType="application/vnd.cncf.model.manifest.v1+json")
    found = fetch(f"oci://{registry.host}/models/awnet:4")
    assert str(found.source) == f"oci://{registry.host}/models/awnet@sha256:{manifest}#sha256={digest}"
    assert files(repository) == VERSION
    registry.send(signal.SIGSTOP)
    try:
        again = fetch(f"oci://{registry.host}/models/awnet@sha256:{manifest}", seconds=2.0)
    finally:
        registry.send(signal.SIGCONT)
    assert (again.new, again.version) == (False, 1)


@requires("registry")
def test_what_oras_pushes(fetch: Fetch, registry: Registry, model: bytes) -> None:
    """A title instead of a path, and a media type of somebody's own."""
    layer = registry.layer(model, "model.onnx", "application/vnd.onnx", "org.opencontainers.image.title")
    registry.push([layer], "oras")
    assert fetch(f"oci://{registry.host}/models/awnet:oras").new


@requires("registry")
def test_a_tag_that_moved(fetch: Fetch, registry: Registry, model: bytes, digest: str, tmp_path: Path) -> None:
    """What was pinned is what one gets, or nothing; the tag beside a digest says nothing."""
    first = registry.push([registry.layer(model, "model.onnx")], "latest")
    other = (publish(tmp_path / "other", seed=5) / "awnet/1/model.onnx").read_bytes()
    registry.push([registry.layer(other, "model.onnx")], "latest")
    with pytest.raises(SourceError, match=hashlib.sha256(other).hexdigest()):
        fetch(f"oci://{registry.host}/models/awnet:latest#sha256={digest}")
    assert fetch(f"oci://{registry.host}/models/awnet:latest@sha256:{first}").source.sha256 == digest


@requires("registry")
@pytest.mark.parametrize(("kind", "mode"), [("tar", "w"), ("tar+gzip", "w:gz")])
def test_a_packed_layer_gives_its_model_and_nothing_else(
    fetch: Fetch, registry: Registry, repository: Path, model: bytes, digest: str, kind: str, mode: str
) -> None:
    """Links, devices and names that lead elsewhere are passed over; the one file gets our name."""
    link, device = tarfile.TarInfo("a.onnx"), tarfile.TarInfo("b.onnx")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    packed = archive(model, "../../../escaped.onnx", mode, link, device)
    registry.push([registry.layer(packed, "model.onnx", f"{MODELPACK}.{kind}")], "packed")
    assert fetch(f"oci://{registry.host}/models/awnet:packed").source.sha256 == digest
    assert files(repository) == VERSION
    assert [path.name for path in repository.parent.iterdir() if "escaped" in path.name] == []


@requires("registry")
def test_an_archive_that_unpacks_to_too_much(
    fetch: Fetch, registry: Registry, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "MAX_MODEL_BYTES", 1 << 20)
    packed = archive(bytes(64 << 20), "model.onnx", "w:gz")
    registry.push([registry.layer(packed, "model.onnx", f"{MODELPACK}.tar+gzip")], "bomb")
    with pytest.raises(SourceError, match="bytes large"):
        fetch(f"oci://{registry.host}/models/awnet:bomb")
    for large in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        before = tarfile.TarInfo("before")
        before.type, before.size = large, 1 << 33
        header = before.tobuf(tarfile.GNU_FORMAT)
        registry.push(
            [registry.layer(gzip.compress(header + bytes(8 << 20)), "model.onnx", f"{MODELPACK}.tar+gzip")], "x"
        )
        with pytest.raises(SourceError, match=f"{1 << 33} bytes large"):
            fetch(f"oci://{registry.host}/models/awnet:x")
    nothing = tarfile.TarInfo("nothing").tobuf() * 4096
    registry.push([registry.layer(gzip.compress(nothing), "model.onnx", f"{MODELPACK}.tar+gzip")], "headers")
    with pytest.raises(SourceError, match="at most"):
        fetch(f"oci://{registry.host}/models/awnet:headers")
    registry.push([registry.layer(b"no archive", "model.onnx", f"{MODELPACK}.tar+gzip")], "broken")
    with pytest.raises(SourceError, match="cannot be unpacked"):
        fetch(f"oci://{registry.host}/models/awnet:broken")
    for cut in (
        gzip.compress(archive(b"x" * 5000, "model.onnx"))[:-20],
        gzip.compress(archive(b"x", "model.onnx")[:512]),
    ):
        registry.push([registry.layer(cut, "model.onnx", f"{MODELPACK}.tar+gzip")], "cut")
        with pytest.raises(SourceError, match="cannot be unpacked"):
            fetch(f"oci://{registry.host}/models/awnet:cut")
    registry.push([registry.layer(b"zstd", "model.onnx", f"{MODELPACK}.tar+zstd")], "zstd")
    with pytest.raises(SourceError, match="zstd"):
        fetch(f"oci://{registry.host}/models/awnet:zstd")
    assert files(repository) == []


@requires("registry")
@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ([], "0 are"),
        (["README.md"], "0 are, of README.md"),
        (["a.onnx", "b.onnx"], "2 are"),
        (["../model.onnx"], "leads elsewhere"),
        (["/etc/model.onnx"], "leads elsewhere"),
        (["a/model.onnx", "b/model.onnx"], "2 are"),
    ],
)
def test_which_layer_is_the_model_has_to_be_clear(
    fetch: Fetch, registry: Registry, repository: Path, model: bytes, paths: list[str], why: str
) -> None:
    registry.push([registry.layer(model, path) for path in paths], "unclear")
    with pytest.raises(SourceError, match=why):
        fetch(f"oci://{registry.host}/models/awnet:unclear")
    assert files(repository) == []


@requires("registry")
def test_a_signed_artifact(fetch: Fetch, registry: Registry, model: bytes, tmp_path: Path) -> None:
    """Manifest and signature are layers of their names, as files; without one of them nothing is taken."""
    key = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    manifest = (publish(tmp_path / "published", "4") / "awnet/4/manifest.json").read_bytes()
    signature = base64.b64encode(key.sign(manifest))
    parts = [(model, "model.onnx"), (manifest, "awnet/4/manifest.json"), (signature, "awnet/4/manifest.json.sig")]
    layers = [registry.layer(data, path) for data, path in parts]
    for broken in (layers[:2], [*layers, layers[2]], [*layers[:2], registry.layer(b"x", "manifest.json.sig")]):
        registry.push(broken, "broken")
        with pytest.raises(SourceError, match=r"manifest\.json\.sig"):
            fetch(f"oci://{registry.host}/models/awnet:broken", signing_key=tmp_path / "public.pem")
    registry.push(layers, "signed")
    assert fetch(f"oci://{registry.host}/models/awnet:signed", signing_key=tmp_path / "public.pem").version == 4


@requires("registry")
def test_what_is_not_there_is_said_with_what_to_do(fetch: Fetch, registry: Registry) -> None:
    for reference in ("models/awnet:nothing", "models/nothing:1", f"models/awnet@sha256:{'0' * 64}"):
        with pytest.raises(SourceError, match=r"404.*DOCKER_CONFIG"):
            fetch(f"oci://{registry.host}/{reference}")


@requires("registry")
def test_a_registry_that_wants_a_password(
    fetch: Fetch, process: None, password: Any, tmp_path: Path, model: bytes
) -> None:
    """From docker's config.json, and only there."""
    (tmp_path / "htpasswd").write_text(HASHED + "\n")
    auth = {"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}}
    with Registry(tmp_path / "registry", auth) as registry:
        registry.http.headers["authorization"] = f"Basic {PASSWORD}"
        wait(registry)
        registry.push([registry.layer(model, "model.onnx")], "1")
        with pytest.raises(SourceError, match=r"401.*config\.json"):
            fetch(f"oci://{registry.host}/models/awnet:1")
        password(registry.host, base64.b64encode(b"user:wrong").decode())
        with pytest.raises(SourceError, match="401"):
            fetch(f"oci://{registry.host}/models/awnet:1")
        password("another.example")
        with pytest.raises(SourceError, match="401"):
            fetch(f"oci://{registry.host}/models/awnet:1")
        password(registry.host)
        assert fetch(f"oci://{registry.host}/models/awnet:1").new


@requires("registry")
def test_a_registry_that_wants_tokens(
    fetch: Fetch, process: None, password: Any, tmp_path: Path, model: bytes, web: Static
) -> None:
    """Asked for where it says, for this repository and for reading alone."""
    tokens = Tokens(web, tmp_path / "tokens")
    with Registry(tmp_path / "registry", tokens.auth) as registry:
        registry.http.headers["authorization"] = f"Bearer {tokens.token('repository:models/awnet:pull,push')}"
        wait(registry)
        registry.push([registry.layer(model, "model.onnx")], "1")
        with pytest.raises(SourceError, match="401"):
            fetch(f"oci://{registry.host}/models/awnet:1")
        password(registry.host)
        assert fetch(f"oci://{registry.host}/models/awnet:1").new
    assert tokens.scopes == ["repository:models/awnet:pull"]


def wait(registry: Registry) -> None:
    def up() -> bool:
        try:
            return registry.http.get("/v2/").status_code == 200
        except httpx.TransportError:
            return False

    eventually(up)


# What no registry does.


def manifest_of(model: bytes, **layer: Any) -> bytes:
    entry = {
        "mediaType": f"{MODELPACK}.raw",
        "digest": f"sha256:{hashlib.sha256(model).hexdigest()}",
        "size": len(model),
        "annotations": {"org.cncf.model.filepath": "model.onnx"},
    }
    return json.dumps({"schemaVersion": 2, "layers": [entry | layer]}).encode()


@pytest.fixture
def liar(web: Static, model: bytes, digest: str) -> Static:
    web.routes["/v2/a/manifests/1"] = body(manifest_of(model))
    web.routes[f"/v2/a/blobs/sha256:{digest}"] = body(model)
    return web


def test_a_manifest_that_is_not_the_pinned_one(fetch: Fetch, liar: Static, model: bytes) -> None:
    liar.routes[f"/v2/a/manifests/sha256:{'0' * 64}"] = body(manifest_of(model))
    with pytest.raises(SourceError, match="a manifest with the digest"):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a@sha256:{'0' * 64}")


@pytest.mark.parametrize("sent", ["another model", "a short one", "a long one"])
def test_a_layer_that_is_not_what_the_manifest_says(
    fetch: Fetch, repository: Path, liar: Static, model: bytes, digest: str, sent: str, tmp_path: Path
) -> None:
    """Also where it is a model that any server would take."""
    other = (publish(tmp_path / "other", seed=6) / "awnet/1/model.onnx").read_bytes()
    data = {"another model": other, "a short one": model[:-1], "a long one": model + b"x"}[sent]
    liar.routes["/v2/a/manifests/1"] = body(manifest_of(model, size=max(len(model), len(other))))
    liar.routes[f"/v2/a/blobs/sha256:{digest}"] = body(data)
    with pytest.raises(SourceError, match=r"another model\.onnx than its manifest says|at most"):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a:1")
    assert files(repository) == []


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"x" * (oci.MAX_MANIFEST_BYTES + 1),
        json.dumps({"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}).encode(),
        json.dumps({"layers": {}}).encode(),
        json.dumps({"layers": [1]}).encode(),
        manifest_of(b"", digest="sha512:12"),
        manifest_of(b"", digest="sha256:../../../etc/passwd"),
        manifest_of(b"", size=-1),
        manifest_of(b"", size=True),
        manifest_of(b"", size=1 << 40),
        manifest_of(b"", annotations=[]),
        manifest_of(b"", annotations={"org.cncf.model.filepath": 1}),
        manifest_of(b"", annotations={"org.cncf.model.filepath": "a\\..\\model.onnx"}),
    ],
)
def test_a_manifest_that_is_none(fetch: Fetch, repository: Path, liar: Static, document: bytes) -> None:
    liar.routes["/v2/a/manifests/1"] = body(document)
    with pytest.raises(SourceError):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a:1")
    assert files(repository) == []


def test_secrets_stay_with_their_host(fetch: Fetch, liar: Static, password: Any, model: bytes, digest: str) -> None:
    """A blob is often a redirect to somebody's storage, which gets the request and no password."""
    password(f"127.0.0.1:{liar.server_port}")
    served = body(model)

    def asks(handler: Any) -> None:
        if handler.headers.get("authorization") == f"Basic {PASSWORD}":
            body(manifest_of(model))(handler)
        else:
            body(b"", 401, www_authenticate='Basic realm="here"')(handler)

    with serving() as storage:
        liar.routes["/v2/a/manifests/1"] = asks
        liar.routes[f"/v2/a/blobs/sha256:{digest}"] = redirect(f"{storage.url}/blob")
        storage.routes["/blob"] = served
        assert fetch(f"oci://127.0.0.1:{liar.server_port}/a:1").new
        assert [asked.headers.get("authorization") for asked in storage.asked] == [None]
    assert liar.asked[-1].headers["authorization"] == f"Basic {PASSWORD}"


@pytest.mark.parametrize(
    ("challenge", "why"),
    [
        ("", "401"),
        ("Negotiate", "401"),
        ("Bearer", "401"),
        ('Bearer realm="file:///etc/passwd"', "no https: file"),
        ('Bearer realm="http://192.0.2.1/token",service="s"', "not encrypted"),
        ('Bearer realm="https://169.254.169.254/token",service="s"', "no public address"),
        ('Bearer realm="/token"', "no https"),
        ('Bearer realm="http://[::1"', "no address"),
        ('Bearer realm="http://127.0.0.1:1/token\\r\\nx: y"', "401"),
    ],
)
def test_a_challenge_that_leads_nowhere_good(
    fetch: Fetch, liar: Static, password: Any, challenge: str, why: str
) -> None:
    password(f"127.0.0.1:{liar.server_port}")
    liar.routes["/v2/a/manifests/1"] = body(b"", 401, www_authenticate=challenge)
    with pytest.raises(SourceError, match=why):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a:1")


@pytest.mark.parametrize("token", [b"", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"[]", b"x" * 100_000])
def test_a_token_that_is_none(fetch: Fetch, liar: Static, token: bytes) -> None:
    liar.routes["/token"] = body(token)
    liar.routes["/v2/a/manifests/1"] = body(b"", 401, www_authenticate=f'Bearer realm="{liar.url}/token"')
    with pytest.raises(SourceError):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a:1")


def test_a_config_of_docker_that_is_none_is_named(fetch: Fetch, liar: Static, password: Any, tmp_path: Path) -> None:
    password("x")
    (tmp_path / "docker/config.json").write_text("{")
    liar.routes["/v2/a/manifests/1"] = body(b"", 401, www_authenticate="Basic")
    with pytest.raises(SourceError, match=r"config\.json is none of docker's"):
        fetch(f"oci://127.0.0.1:{liar.server_port}/a:1")
