"""One model file in place of a repository: no manifest says what it should be, its contract is all that is checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..core.regular_files import open_regular
from ..errors import ModelNotFound
from .onnx_scan import scan
from .repository import Artifact

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
        """The file is read once."""
        return ()

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
