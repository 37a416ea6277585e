"""Registries of the OCI distribution specification 1.1: which layer of an artifact is the model, and where it is.

An artifact is one of CNCF's ModelPack (github.com/modelpack/model-spec: a layer `application/vnd.cncf.model.weight.v1`
has its path in `org.cncf.model.filepath`), or any whose layers have a title, as `oras push` makes them. Its model is
the one layer that is named *.onnx. Names in a manifest choose a layer; none of them is a path here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlencode, urlsplit

from ..core.model_source import ModelSource
from ..core.regular_files import read_regular
from ..errors import SourceError
from ..ports.listening import is_loopback
from .transfer import Request, Transfer

MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
MAX_MANIFEST_BYTES, MAX_TOKEN_BYTES, MAX_CONFIG_BYTES = 4 << 20, 64 << 10, 1 << 20  # the first by the specification
NAMES = ("org.cncf.model.filepath", "org.opencontainers.image.title")  # annotations of a layer
DOCKER_HUB = "registry-1.docker.io"
HINT = "the registry has no such artifact, or docker's config.json (DOCKER_CONFIG) has no right password for it"

_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"\\]*)"')


class Layer(NamedTuple):
    """One file of an artifact.

    Attributes:
        sha256: hexadecimal, of the bytes that the registry has; of the file itself where `packed` is empty.
        packed: "tar", "tar+gzip", "tar+zstd", or nothing.
    """

    name: str
    sha256: str
    size: int
    packed: str


class Artifact(NamedTuple):
    """Files, and the hexadecimal SHA-256 of the manifest that lists them."""

    layers: list[Layer]
    model: Layer
    manifest: str

    def file(self, name: str) -> Layer | None:
        """The one of this name that is a file as it is."""
        found = [layer for layer in self.layers if layer.name == name and not layer.packed]
        return found[0] if len(found) == 1 else None


class Registry:
    """Asks a registry for one repository, with a token where it wants one.

    Args:
        source: which.
        transfer: open.
    """

    def __init__(self, source: ModelSource, transfer: Transfer, environment: Mapping[str, str] = os.environ) -> None:
        self._source, self._transfer, self._environment = source, transfer, environment
        self._hub = source.place in ("docker.io", "index.docker.io", DOCKER_HUB)
        host = DOCKER_HUB if self._hub else source.place
        # As Docker has it: a registry on this machine speaks HTTP, any other one HTTPS.
        scheme = "http" if is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
        library = "library/" if self._hub and "/" not in source.path else ""
        self._name = library + source.path
        self._base = f"{scheme}://{host}/v2/{self._name}"
        self._authorization: dict[str, str] = {}

    async def artifact(self) -> Artifact:
        """What the manifest lists. Raises SourceError."""
        source = self._source
        reference = f"sha256:{source.manifest}" if source.manifest else source.revision or "latest"
        request = self._request(f"/manifests/{reference}", {"accept": ", ".join(MANIFEST_TYPES)})
        document, _ = await self._transfer.small(request, MAX_MANIFEST_BYTES)
        digest = hashlib.sha256(document).hexdigest()
        if source.manifest and digest != source.manifest:
            raise SourceError(f"{source}: the registry sends a manifest with the digest sha256:{digest}")
        layers = _layers(document, str(source))
        models = [layer for layer in layers if layer.name.endswith(".onnx")]
        if len(models) != 1:
            named = ", ".join(layer.name for layer in layers)[:200] or "none with a name"
            raise SourceError(f"{source}: one layer has to be named *.onnx; {len(models)} are, of {named}")
        return Artifact(layers, models[0], digest)

    def blob(self, layer: Layer) -> Request:
        """How a layer is asked for."""
        return self._request(f"/blobs/sha256:{layer.sha256}", {})

    def _request(self, path: str, general: dict[str, str]) -> Request:
        url = self._base + path
        return Request(url, lambda: self._authorization, general, self._challenged, hint=HINT)

    async def _challenged(self, challenge: str) -> bool:
        """Answer a 401: with the password itself, or with a token that the server it names gives for the password."""
        kind, _, rest = challenge.partition(" ")
        given = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        password = self._password()
        if kind.lower() == "basic":
            self._authorization = password
            return bool(password)
        if kind.lower() != "bearer" or "realm" not in given:
            return False
        asked = {"scope": f"repository:{self._name}:pull"}  # and no more, whatever the registry would like
        if "service" in given:
            asked["service"] = given["service"]
        url = f"{given['realm']}{'&' if '?' in given['realm'] else '?'}{urlencode(asked)}"
        request = Request(url, lambda: password, named=self._base, hint=HINT)
        body, _ = await self._transfer.small(request, MAX_TOKEN_BYTES)
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer["access_token"]
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise SourceError(f"{self._source}: the server of tokens gave none") from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceError(f"{self._source}: the server of tokens gave none")
        self._authorization = {"authorization": f"Bearer {token}"}
        return True

    def _password(self) -> dict[str, str]:
        """The header with what docker's config.json has for this registry, if it has anything. Raises SourceError."""
        folder = self._environment.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        path = Path(folder) / "config.json"
        try:
            document = json.loads(read_regular(path, MAX_CONFIG_BYTES))
            auths = document.get("auths") or {}
            hosts = ("https://index.docker.io/v1/", "docker.io") if self._hub else (self._source.place,)
            found = [auths[key].get("auth") for host in hosts for key in (host, f"https://{host}") if key in auths]
            if found and found[0]:
                base64.b64decode(found[0], validate=True)
                return {"authorization": f"Basic {found[0]}"}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise SourceError(f"{path} is none of docker's") from None
        return {}


def _layers(document: bytes, where: str) -> list[Layer]:
    """The layers with a name, of which only the last part is kept. Raises SourceError."""

    def refuse(why: str) -> NoReturn:
        raise SourceError(f"{where}: the manifest {why}")

    try:
        manifest = json.loads(document)
    except (ValueError, RecursionError):
        refuse("is not JSON")
    if not isinstance(manifest, dict) or manifest.get("mediaType", MANIFEST_TYPES[0]) not in MANIFEST_TYPES:
        refuse("is not that of one artifact: name the digest of that one, not of an index")
    listed = manifest.get("layers")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        refuse("has no list of layers")
    found: list[Layer] = []
    for entry in listed:
        annotations: Any = entry.get("annotations")
        names = [annotations.get(key) for key in NAMES] if isinstance(annotations, dict) else []
        path = next((name for name in names if isinstance(name, str) and name), None)
        if path is None:
            continue
        if not path.isprintable() or path.startswith("/") or "\\" in path or ".." in path.split("/"):
            refuse(f"has a layer whose name leads elsewhere: {path[:80]!r}")
        digest, size = re.fullmatch(r"sha256:([0-9a-f]{64})", str(entry.get("digest"))), entry.get("size")
        if digest is None or type(size) is not int or size < 0:
            refuse(f"has no SHA-256 and size for {path[:80]}")
        found.append(Layer(path.rpartition("/")[2], digest[1], size, _packed(str(entry.get("mediaType")))))
    return found


def _packed(media_type: str) -> str:
    return next((packed for packed in ("tar", "tar+gzip", "tar+zstd") if media_type.endswith(f".{packed}")), "")
