"""A version of a model with another contract: the same weights in a new file, published beside the others.

Neither a runtime nor the library onnx is needed: the contract is a string in the file's metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.files import alone_in, replace, sync, write
from export.layout import CONFIG_FILE, MANIFEST_FILE, METADATA_KEY, MODEL_FILE, STAGING, manifest, numbered, quoted
from server.engines.onnx_wire import Field, encoded, fields

METADATA_PROPS = 14  # of ModelProto; its entries have a key (1) and a value (2)


class VersionError(ValueError):
    """The file is no model with a contract, or cannot be published; says why."""


def contract_of(model: bytes) -> dict[str, Any]:
    """The contract as JSON. Raises VersionError, or ContractError where the file is no ONNX."""
    for _, entry in _metadata(model):
        if entry.get(1) == METADATA_KEY.encode():
            try:
                found = json.loads(entry.get(2, b""))
            except ValueError as error:
                raise VersionError(f"the model's contract is not JSON: {error}") from None
            if isinstance(found, dict):
                return found
    raise VersionError("the model carries no contract: it was not made by `awnet export`")


def with_contract(model: bytes, contract: Mapping[str, Any]) -> bytes:
    """The model with this contract in place of its own; every other byte is kept."""
    text = json.dumps(contract, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    entry = encoded(METADATA_PROPS, encoded(1, METADATA_KEY.encode()) + encoded(2, text))
    for place, found in _metadata(model):
        if found.get(1) == METADATA_KEY.encode():
            return model[: place.begin] + entry + model[place.end :]
    raise VersionError("the model carries no contract")


def publish(model: bytes, repository: Path, name: str) -> Path:
    """Write the next version of `name`; returns its folder. What was there before stays, whatever ends this.

    Triton's config.pbtxt, where there is one, gets the new version's contract and hash. Raises OSError.
    """
    home = repository / name
    home.mkdir(parents=True, exist_ok=True)
    with alone_in(home):
        version = max(numbered(home), default=0) + 1
        staging = home / f"{STAGING}{version}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        document = manifest(model, name, version)
        write(staging / MODEL_FILE, model)
        write(staging / MANIFEST_FILE, document)
        sync(staging)
        config = home / CONFIG_FILE
        if config.is_file():
            sha256 = json.loads(document)["files"][MODEL_FILE]["sha256"]
            text = json.dumps(contract_of(model), ensure_ascii=False, separators=(",", ":"))
            added = "".join(
                f'parameters {{ key: "{key}.{version}" value {{ string_value: {quoted(value)} }} }}\n'
                for key, value in (("contract", text), ("sha256", sha256))
            )
            begun = [line for line in config.read_text("utf-8").splitlines(True) if f'.{version}" value' not in line]
            replace(config, ("".join(begun) + added).encode())
        staging.rename(home / str(version))
        sync(home)
    return home / str(version)


def _metadata(model: bytes) -> list[tuple[Field, dict[int, bytes]]]:
    """Each metadata entry: where it lies, and its fields."""
    return [
        (place, {inner.number: model[inner.at : inner.end] for inner in fields(model, place.at, place.end)})
        for place in fields(model, 0, len(model))
        if place.number == METADATA_PROPS
    ]
