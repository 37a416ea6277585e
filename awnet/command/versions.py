"""A version of a model with another contract: the same weights in a new file, published beside the others.

Neither a runtime nor the library onnx is needed: the contract is a string in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.repository.layout import CONFIG_FILE, METADATA_KEY, quoted
from export.repository.publication import add_version
from server.engines.onnx_cut import property_of
from server.engines.onnx_wire import encoded, fields

METADATA_PROPS = 14  # of ModelProto; its entries have a key (1) and a value (2)


class VersionError(ValueError):
    """The file is no model with a contract, or cannot be published; says why."""


def contract_of(model: bytes) -> dict[str, Any]:
    """The contract as JSON. Raises VersionError, or ContractError where the file is no ONNX."""
    text = property_of(model, METADATA_KEY)
    try:
        found = None if text is None else json.loads(text)
    except ValueError as error:
        raise VersionError(f"the model's contract is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise VersionError("the model carries no contract: it was not made by `awnet export`")
    return found


def with_contract(model: bytes, contract: Mapping[str, Any]) -> bytes:
    """The model with this contract in place of its own; every other byte is kept."""
    text = json.dumps(contract, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    entry = encoded(METADATA_PROPS, encoded(1, METADATA_KEY.encode()) + encoded(2, text))
    for place in fields(model, 0, len(model)):
        if place.number == METADATA_PROPS:
            inside = {inner.number: model[inner.at : inner.end] for inner in fields(model, place.at, place.end)}
            if inside.get(1) == METADATA_KEY.encode():
                return model[: place.begin] + entry + model[place.end :]
    raise VersionError("the model carries no contract")


def publish(model: bytes, repository: Path, name: str, made_of: Path) -> Path:
    """Write the next version of `name`, a number above that of the file which it was made of; returns its folder.

    What was there before stays, whatever ends this.
    Triton's config.pbtxt, where there is one, gets the new version's contract and hash. Raises OSError.
    """
    home, number = repository / name, made_of.resolve().parent.name
    after = int(number) if number.isdecimal() else 0
    return add_version(model, home, lambda version: told_to_triton(home, version, model), after=after)


def told_to_triton(home: Path, version: int, model: bytes) -> bytes | None:
    """Triton's config.pbtxt in a model's folder, with contract and hash of a version more; None where there is none.

    Raises VersionError, OSError.
    """
    path = home / CONFIG_FILE
    if not path.is_file():
        return None
    text = json.dumps(contract_of(model), ensure_ascii=False, separators=(",", ":"))
    begun = [line for line in path.read_text("utf-8").splitlines(True) if f'.{version}" value' not in line]
    added = [
        f'parameters {{ key: "{key}.{version}" value {{ string_value: {quoted(value)} }} }}\n'
        for key, value in (("contract", text), ("sha256", hashlib.sha256(model).hexdigest()))
    ]
    return "".join(begun + added).encode()


def published(folder: Path) -> list[str]:
    """What is said of a new version: lines."""
    return [
        f"published: {folder}, unsigned: `python -m export.sign` signs it where servers ask for that",
        f"serve it:  awnet serve --repository {folder.parent.parent} --model {folder.parent.name}",
    ]
