"""Where a version of a model may be fetched from, as text: `AWNET_MODEL_SOURCE`, and the argument of `awnet pull`.

    file:///folder/model.onnx                     or the folder of a version
    https://host/path/model.onnx                  http on this machine only
    hf://org/repo/path/model.onnx@revision        or hf://org/repo@revision/path/model.onnx
    s3://bucket/key/model.onnx?versionId=...
    oci://registry/repository:tag                 or @sha256:..., the digest of its manifest

Behind each of them `#sha256=...` is the SHA-256 of model.onnx. A fragment is never sent to a server.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal, NoReturn, cast
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

Scheme = Literal["file", "https", "http", "hf", "s3", "oci"]
SCHEMES = ("file", "https", "http", "hf", "s3", "oci")
MAX_LENGTH = 4096

_HEX = r"[0-9a-f]{64}"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"  # of a repository's name, as the distribution specification has it
_HF = re.compile(rf"({_WORD}/{_WORD})(?:@([^/@]+))?/([^@]+)(?:@([^@]+))?")
_OCI = re.compile(rf"({_HOST})/({_PART}(?:/{_PART})*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?(?:@sha256:({_HEX}))?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One place of a version, and what it has to be.

    Attributes:
        place: host and port of a URL, registry, bucket, or ORG/REPO of Hugging Face; nothing of a file.
        path: of the file, in whatever `place` is; the repository's name in a registry. Percent-encoded in a URL only.
        query: of a URL; it may hold a signature that opens it, so it is never shown.
        revision: commit, branch or tag of Hugging Face, versionId of S3, tag of a registry; may be empty.
        manifest: hexadecimal SHA-256 of the manifest in a registry; may be empty.
        sha256: hexadecimal SHA-256 of model.onnx; may be empty.
    """

    scheme: Scheme
    place: str
    path: str
    query: str = dataclasses.field(default="", repr=False)
    revision: str = ""
    manifest: str = ""
    sha256: str = ""

    @property
    def pinned(self) -> bool:
        """Whether it can be no other bytes tomorrow, whoever serves them."""
        return bool(self.sha256 or self.manifest)

    def pin(self, sha256: str, revision: str = "", manifest: str = "") -> ModelSource:
        """The same with what was found there."""
        return dataclasses.replace(
            self, sha256=sha256, revision=revision or self.revision, manifest=manifest or self.manifest
        )

    def __str__(self) -> str:
        """As it is written, without the query of a URL."""
        path = self.path if self.scheme in ("http", "https", "oci") else quote(self.path)
        text = f"{self.scheme}://{self.place}{'' if path.startswith('/') else '/'}{path}"
        if self.scheme == "hf" and self.revision:
            text += f"@{quote(self.revision, safe='')}"
        elif self.scheme == "s3" and self.revision:
            text += f"?versionId={quote(self.revision, safe='')}"
        elif self.scheme == "oci":
            # A tag beside a digest says nothing, and may have moved.
            text += f"@sha256:{self.manifest}" if self.manifest else f":{self.revision}" if self.revision else ""
        return text + (f"#sha256={self.sha256}" if self.sha256 else "")


def parse_model_source(text: str) -> ModelSource:
    """The source that `text` names. Raises ValueError, with a sentence that tells nothing secret."""
    if len(text) > MAX_LENGTH or not text.isprintable() or " " in text:
        raise ValueError(f"is no model source: at most {MAX_LENGTH} printable characters without spaces")
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError("must begin with " + ", ".join(f"{known}://" for known in SCHEMES))
    text, _, fragment = text.partition("#")
    digest = re.fullmatch(rf"sha256=({_HEX})", fragment)
    if fragment and digest is None:
        raise ValueError("may end with #sha256= and 64 hexadecimal digits in lower case, and with no other #")
    found = _parse(cast(Scheme, scheme), text)
    return dataclasses.replace(found, sha256=digest[1]) if digest else found


def _parse(scheme: Scheme, text: str) -> ModelSource:
    rest = text.partition("://")[2]
    if scheme == "oci":
        if (oci := _OCI.fullmatch(rest)) is None:
            _refuse("must be oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST")
        return ModelSource("oci", oci[1], oci[2], revision=oci[3] or "", manifest=oci[4] or "")
    if scheme == "hf":
        hf = _HF.fullmatch(rest)
        if hf is None or "?" in rest or (hf[2] and hf[4]):
            _refuse("must be hf://ORG/REPOSITORY/PATH@REVISION")
        return ModelSource("hf", hf[1], _path(unquote(hf[3])), revision=unquote(hf[2] or hf[4] or ""))
    parts = _split(text)
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or not parts.path.startswith("/"):
            _refuse("must be file:///PATH, with the whole path")
        if "\0" in (path := unquote(parts.path)):
            _refuse("has a path that no file can have")
        return ModelSource("file", "", path)
    if scheme == "s3":
        query = parse_qs(parts.query, keep_blank_values=True)
        versions = query.pop("versionId", [])
        if not _BUCKET.fullmatch(parts.netloc) or query or len(versions) > 1:
            _refuse("must be s3://BUCKET/KEY or s3://BUCKET/KEY?versionId=ID")
        return ModelSource("s3", parts.netloc, _path(unquote(parts.path[1:])), revision="".join(versions))
    if not re.fullmatch(_HOST, parts.netloc) or parts.path in ("", "/"):
        _refuse("must be https://HOST/PATH, without a user")
    return ModelSource(scheme, parts.netloc, parts.path, query=parts.query)


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        _refuse("is no address")
    return parts


def _path(path: str) -> str:
    """A path within something. Raises ValueError where it leads out of it."""
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        _refuse("has a path with empty parts or dots")
    return path


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)
