"""How each kind of model source is asked for a file, and what of its answer names that file for ever."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import httpx

from ..core.model_source import ModelSource
from ..errors import SourceError
from ..ports.listening import is_loopback
from . import s3
from .files import Stopped, apart, copied, of_the_source, opened, sync, unpacked
from .oci import Artifact, Layer, Registry
from .transfer import Got, Progress, Request, Transfer

HUGGING_FACE = "https://huggingface.co"
MODEL_FILE = "model.onnx"
MAX_MODEL_BYTES = (2 << 30) - 1  # no protobuf message, and so no ONNX file, is larger


class Fetched(NamedTuple):
    """A model that was fetched: its source, pinned to what came of it, and the size of the file."""

    source: ModelSource
    size: int


class Origin(Protocol):
    """One model source, asked."""

    async def expected(self) -> str:
        """SHA-256 that model.onnx will have, hexadecimal, where it is known before it is fetched; or nothing."""

    async def model(self, folder: Path, progress: Progress) -> Fetched:
        """Write model.onnx to `folder`. Raises SourceError, OSError."""

    async def beside(self, name: str, most: int) -> bytes:
        """A small file that lies beside the model. Raises SourceError."""


def origin_of(source: ModelSource, transfer: Transfer, environment: Mapping[str, str] = os.environ) -> Origin:
    """Who is asked for `source`. Raises SourceError."""
    if source.scheme == "file":
        return _File(source)
    if source.scheme == "oci":
        return _Oci(source, transfer, environment)
    return _Static(source, transfer, environment)


class _File:
    """A model file of this machine, or the folder of a version."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    async def expected(self) -> str:
        return self._source.sha256

    async def model(self, folder: Path, progress: Progress) -> Fetched:
        target = folder / MODEL_FILE
        sha256, size = await apart(lambda stopped: copied(self._file(), target, MAX_MODEL_BYTES, progress, stopped))
        return Fetched(self._source.pin(sha256), size)

    async def beside(self, name: str, most: int) -> bytes:
        def read(_: Stopped) -> bytes:
            path = self._file().with_name(name)
            with opened(path) as file:
                return of_the_source(file.read, path)(most + 1)

        return await apart(read)

    def _file(self) -> Path:
        path = Path(self._source.path)
        return path / MODEL_FILE if path.is_dir() else path


class _Static:
    """A file behind one URL: of a web server, of Hugging Face, of S3."""

    def __init__(self, source: ModelSource, transfer: Transfer, environment: Mapping[str, str]) -> None:
        self._source, self._transfer, self._environment = source, transfer, environment
        if source.scheme == "http" and not is_loopback(httpx.URL(str(source)).host):
            raise SourceError(f"{source}: http is for this machine only; say https")

    async def expected(self) -> str:
        return self._source.sha256

    async def model(self, folder: Path, progress: Progress) -> Fetched:
        with (folder / MODEL_FILE).open("w+b") as file:
            got = await self._transfer.file(self._request(self._source), file, MAX_MODEL_BYTES, progress)
            await apart(lambda _: sync(file))
        return Fetched(self._source.pin(got.sha256, self._found(got.headers)), got.size)

    async def beside(self, name: str, most: int) -> bytes:
        source = self._source
        folder, slash, _ = source.path.rpartition("/")
        # A versionId is the model's own. Of what lies beside it the newest is taken: its signature says what it is.
        revision = "" if source.scheme == "s3" else source.revision
        other = dataclasses.replace(source, path=f"{folder}{slash}{name}", revision=revision)
        return (await self._transfer.small(self._request(other), most))[0]

    def _request(self, source: ModelSource) -> Request:
        if source.scheme == "s3":
            url = s3.url_of(source.place, source.path, source.revision, self._environment)
            region = "the keys (AWS_ACCESS_KEY_ID) may not read it, or AWS_REGION is not the bucket's"
            return Request(url, lambda: s3.signed(url, self._environment), hint=region)
        if source.scheme == "hf":
            base = self._environment.get("HF_ENDPOINT", "").rstrip("/") or HUGGING_FACE
            token = self._environment.get("HF_TOKEN", "")
            revision = quote(source.revision or "main", safe="")
            url = f"{base}/{source.place}/resolve/{revision}/{quote(source.path)}"
            secrets = {"authorization": f"Bearer {token}"} if token else {}
            if token and urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).hostname or ""):
                raise SourceError("HF_ENDPOINT is not encrypted, and HF_TOKEN would be sent there")
            return Request(url, lambda: secrets, hint="there is none, or HF_TOKEN may not read it")
        query = f"?{source.query}" if source.query else ""
        return Request(f"{source.scheme}://{source.place}{source.path}{query}")

    def _found(self, headers: httpx.Headers) -> str:
        """The commit, or the version of an object, that was served, where the server says."""
        if self._source.scheme == "hf":
            commit = headers.get("x-repo-commit", "")
            return commit if re.fullmatch("[0-9a-f]{40}", commit) else ""
        version = headers.get("x-amz-version-id", "") if self._source.scheme == "s3" else ""
        return version if re.fullmatch("[!-~]{1,1024}", version) and version != "null" else ""


class _Oci:
    """An artifact in a registry."""

    def __init__(self, source: ModelSource, transfer: Transfer, environment: Mapping[str, str]) -> None:
        self._source, self._transfer = source, transfer
        self._registry = Registry(source, transfer, environment)
        self._artifact: Artifact | None = None

    async def _known(self) -> Artifact:
        if self._artifact is None:
            self._artifact = await self._registry.artifact()
        return self._artifact

    async def expected(self) -> str:
        model = (await self._known()).model
        return self._source.sha256 if model.packed else model.sha256

    async def model(self, folder: Path, progress: Progress) -> Fetched:
        artifact = await self._known()
        layer = artifact.model
        if layer.size > MAX_MODEL_BYTES:
            raise SourceError(f"{self._source}: the model has {layer.size} bytes; at most {MAX_MODEL_BYTES} are taken")
        target, archive = folder / MODEL_FILE, folder / f"{MODEL_FILE}.tar"
        with (archive if layer.packed else target).open("w+b") as file:
            got = await self._blob(layer, file, progress)
            await apart(lambda _: sync(file))
        sha256, size = got.sha256, got.size
        if layer.packed:
            sha256, size = await apart(
                lambda stopped: unpacked(archive, layer.packed, target, MAX_MODEL_BYTES, stopped)
            )
            archive.unlink()
        return Fetched(self._source.pin(sha256, manifest=artifact.manifest), size)

    async def beside(self, name: str, most: int) -> bytes:
        layer = (await self._known()).file(name)
        if layer is None:
            raise SourceError(f"{self._source}: there is no layer {name}, or more than one")
        body, _ = await self._transfer.small(self._registry.blob(layer), most)
        if hashlib.sha256(body).hexdigest() != layer.sha256:
            raise SourceError(f"{self._source}: the registry sends another {name} than its manifest says")
        return body

    async def _blob(self, layer: Layer, file: BinaryIO, progress: Progress) -> Got:
        got = await self._transfer.file(self._registry.blob(layer), file, layer.size, progress)
        if (got.sha256, got.size) != (layer.sha256, layer.size):
            raise SourceError(f"{self._source}: the registry sends another {layer.name} than its manifest says")
        return got
