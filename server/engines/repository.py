"""The model repository as the server reads it: which versions there are, and one version's bytes once they are trusted.

    <root>/<model>/<version>/model.onnx
    <root>/<model>/<version>/manifest.json        {"schema_version": 1, "model": ..., "version": ..., "files": {...}}
    <root>/<model>/<version>/manifest.json.sig    optional: base64 of the Ed25519 signature over manifest.json

Whatever is wrong with a version is found here, before a runtime sees a byte of it: a file that is not whole, a manifest
that speaks of something else, a missing signature, a FIFO or a device instead of a file, weights kept in other files,
operators that are not ONNX's own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..core.regular_files import open_regular, read_regular
from ..core.version import MODEL_NAME, parse_version
from ..errors import ContractError, ManifestError, ModelNotFound
from .onnx_scan import scan

MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE = "model.onnx", "manifest.json", "manifest.json.sig"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, MAX_KEY_BYTES = 64 << 10, 1 << 10, 64 << 10
_SHA256 = re.compile(r"[0-9a-f]{64}")

Mark = tuple[str, int, tuple[tuple[int, int, int, int] | None, ...]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One verified version: the bytes of its `model.onnx` and their SHA-256, hexadecimal."""

    data: bytes
    sha256: str


class Repository:
    """Reads `root`; never writes.

    Args:
        root: folder of the models.
        signing_key: PEM file of an Ed25519 public key. Where it is given, a version without a valid signature of its
            manifest is refused.

    Raises:
        ManifestError: the key cannot be used.
    """

    def __init__(self, root: Path, signing_key: Path | None = None) -> None:
        self._root = root
        self._verify = _verifier(signing_key) if signing_key is not None else None

    def catalogue(self) -> dict[str, tuple[int, ...]]:
        """Names of models and their versions, ascending. A folder counts once it holds a model or a manifest.

        Raises:
            ModelNotFound: there is no repository.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, version, stats in self._marks():
            if any(stats[:2]):
                found[name] = (*found.get(name, ()), version)
        return found

    def fingerprint(self) -> tuple[Mark, ...]:
        """One entry (model, version, stat of each file) a version: equal as long as no file was touched.

        Empty where there is no repository, so that polling outlives a volume that is gone for a moment.
        """
        try:
            return tuple(self._marks())
        except ModelNotFound:
            return ()

    def read(self, name: str, version: int) -> Artifact:
        """The model of one version, after every check that needs no runtime.

        Raises:
            ModelNotFound: there is no such version, or it has no model.
            ManifestError: the manifest is missing, does not fit, or is not signed.
            ContractError: the model keeps weights in other files, or uses operators that are not ONNX's own.
        """
        if not re.fullmatch(MODEL_NAME, name):
            raise ModelNotFound(f"{name[:40]!r} is no model name")
        folder = self._root / name / str(version)
        if not folder.is_dir():
            raise ModelNotFound(f"there is no version {version} of {name} in {self._root}")
        document = _bounded(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES, f"{name} {version}")
        if self._verify is not None:
            self._verify(document, folder / SIGNATURE_FILE, f"{name} {version}")
        sha256, size = _parse(document, name, version)
        try:
            with open_regular(folder / MODEL_FILE) as file:
                # The size first: a file that is still being copied is not read, and none fills the memory.
                if (there := os.fstat(file.fileno()).st_size) != size:
                    raise ManifestError(f"{name} {version}: {MODEL_FILE} has {there} bytes, its manifest says {size}")
                data = file.read(size + 1)
        except FileNotFoundError:
            raise ModelNotFound(f"{name} {version}: there is no {MODEL_FILE}") from None
        except OSError as error:
            raise ModelNotFound(f"{name} {version}: {MODEL_FILE} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ManifestError(f"{name} {version}: {MODEL_FILE} is not the file of its manifest (SHA-256 differs)")
        try:
            scan(data)
        except ContractError as error:
            raise ContractError(f"{name} {version}: {error.detail}") from None
        return Artifact(data, sha256)

    def _marks(self) -> Iterator[Mark]:
        """Entries of `fingerprint`, by name and version. Raises ModelNotFound."""
        try:
            models = sorted(p.name for p in os.scandir(self._root) if re.fullmatch(MODEL_NAME, p.name) and p.is_dir())
        except OSError as error:
            raise ModelNotFound(f"there is no model repository {self._root}: {error.strerror}") from None
        for name in models:
            home = self._root / name
            try:
                numbers = sorted(n for p in os.scandir(home) if (n := parse_version(p.name)) is not None and p.is_dir())
            except OSError:
                continue  # gone since it was listed
            for number in numbers:
                files = (MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE)
                yield name, number, tuple(_stat(home / str(number) / file) for file in files)


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # ctime as well: it changes where a copy restored the old mtime.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _bounded(path: Path, max_bytes: int, whose: str) -> bytes:
    """A small file's bytes. Raises ManifestError."""
    try:
        data = read_regular(path, max_bytes)
    except FileNotFoundError:
        raise ManifestError(f"{whose}: there is no {path.name}") from None
    except OSError as error:
        raise ManifestError(f"{whose}: {path.name} cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ManifestError(f"{whose}: {path.name} is larger than {max_bytes} bytes")
    return data


def _parse(document: bytes, name: str, version: int) -> tuple[str, int]:
    """(SHA-256, bytes) of the model by its manifest. Raises ManifestError."""

    def refuse(why: str) -> NoReturn:
        raise ManifestError(f"{name} {version}: {MANIFEST_FILE} {why}")

    try:
        manifest = json.loads(document)
    except (ValueError, RecursionError):
        refuse("is not JSON")
    if not isinstance(manifest, dict):
        refuse("is not a JSON object")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        refuse(f"has schema_version {manifest.get('schema_version')!r}; this server reads {SCHEMA_VERSION}")
    if (manifest.get("model"), manifest.get("version")) != (name, version):
        # Else a signed old version could be put back under a new number.
        refuse(f"is that of {manifest.get('model')!r} {manifest.get('version')!r}")
    files = manifest.get("files")
    entry: Any = files.get(MODEL_FILE) if isinstance(files, dict) else None
    if not isinstance(entry, dict):
        refuse(f"does not list {MODEL_FILE}")
    sha256, size = entry.get("sha256"), entry.get("bytes")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(size) is int and size >= 0):
        refuse(f"has no sha256 and bytes for {MODEL_FILE}")
    return sha256, size


def _verifier(key_file: Path) -> Callable[[bytes, Path, str], None]:
    """A function (document, signature file, whose) that raises ManifestError unless the signature is the key's."""
    try:
        # Imported only where signatures are asked for: it is an extra, and costs 10 MB.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise ManifestError(
            "a signing key needs the package cryptography: install the extra, pip install '.[signing]' in a checkout"
        ) from None
    try:
        key = load_pem_public_key(read_regular(key_file, MAX_KEY_BYTES))
    except (OSError, ValueError) as error:
        raise ManifestError(f"the signing key {key_file} cannot be read: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ManifestError(f"the signing key {key_file} is not an Ed25519 public key")

    def verify(document: bytes, signature_file: Path, whose: str) -> None:
        text = _bounded(signature_file, MAX_SIGNATURE_BYTES, whose)
        try:
            key.verify(base64.b64decode(text.strip(), validate=True), document)
        except (binascii.Error, ValueError, InvalidSignature):
            raise ManifestError(f"{whose}: {signature_file.name} is not the signing key's") from None

    return verify
