"""One model file in place of a repository: no manifest says what it should be, its contract is all that is checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..core.regular_files import open_regular
from ..errors import ManifestError, ModelNotFound
from .onnx_scan import scan
from .repository import Artifact, Repository

VERSION = 1  # of a file that says none


class ModelFile:
    """Reads `path` as the only version of the model `name`; see `repository.Repository`, whose place it takes."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def catalogue(self) -> dict[str, tuple[int, ...]]:
        """The one model."""
        return {self._name: (VERSION,)}

    def fingerprint(self) -> object:
        """Never another, as the file is read once; it names the version, or a reload would take it to be missing."""
        return ((self._name, VERSION),)

    def read(self, name: str, version: int) -> Artifact:
        """The file.

        Raises:
            ModelNotFound: it is not there.
            ContractError: it is no ONNX, keeps weights in other files, or uses operators that are not ONNX's own.
        """
        try:
            with open_regular(self._path) as file:
                data = file.read()
        except OSError as error:
            raise ModelNotFound(f"{self._path} cannot be read: {error.strerror}") from error
        scan(data)
        return Artifact(data, hashlib.sha256(data).hexdigest())


def repository_of(path: Path, name: str, key: Path | None) -> Repository | ModelFile:
    """The repository in the folder `path`, signed with `key` where there is one, or the file there as the model `name`.

    Raises:
        ManifestError: the key cannot be used, or a file alone should have a signature.
    """
    if not path.is_file():
        return Repository(path, key)
    if key is not None:
        raise ManifestError(f"{path} is a file alone, which has no signature")
    return ModelFile(path, name)
