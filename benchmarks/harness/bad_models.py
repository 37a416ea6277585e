"""Versions that must not be served, made from a good one: one function for each thing that can be wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def publish(home: Path, version: int, data: bytes | None, promised: bytes | None = None) -> None:
    """Put a version into `home` with a manifest of `promised` (default: of `data`); `data` None leaves the file out."""
    folder, staging = home / str(version), home / f".staging-{version}"
    staging.mkdir()
    if data is not None:
        (staging / "model.onnx").write_bytes(data)
    promised = promised if promised is not None else data or b""
    digest = hashlib.sha256(promised).hexdigest()
    manifest = {
        "schema_version": 1,
        "model": home.name,
        "version": version,
        "files": {"model.onnx": {"sha256": digest, "bytes": len(promised)}},
    }
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    config = home / "config.pbtxt"
    if config.exists():
        _describe(config, version, digest)
    staging.rename(folder)


def _describe(config: Path, version: int, digest: str) -> None:
    entry = f'parameters {{ key: "sha256.{version}" value {{ string_value: "{digest}" }} }}\n'
    config.write_text(config.read_text("utf-8") + entry, "utf-8")


def source(home: Path) -> bytes:
    """The version that everything is made from: the first."""
    return (home / "1" / "model.onnx").read_bytes()


def corrupt(home: Path, version: int) -> None:
    """Bytes in the middle are others than they were; the manifest was made before."""
    data = bytearray(source(home))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    publish(home, version, bytes(data), promised=source(home))


def no_model(home: Path, version: int) -> None:
    """Not a model at all, but with a manifest that says the truth about it."""
    publish(home, version, np.random.default_rng(0).bytes(100_000))


def absent(home: Path, version: int) -> None:
    """A folder with a manifest and no model."""
    publish(home, version, None, promised=source(home))


def wrong_hash(home: Path, version: int) -> None:
    """A whole and valid model, another one than the manifest promises."""
    model = onnx.load_model_from_string(source(home))
    model.doc_string = "another one"
    publish(home, version, model.SerializeToString(), promised=source(home))


def wrong_shape(home: Path, version: int) -> None:
    """Its input is 16 pixels wide; contract and manifest are as they should be."""
    model = onnx.load_model_from_string(source(home))
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value //= 2
    del model.graph.value_info[:]
    publish(home, version, model.SerializeToString())


def wrong_values(home: Path, version: int) -> None:
    """Right shapes, wrong numbers: one weight tensor is another; only the golden values can tell."""
    model = onnx.load_model_from_string(source(home))
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(-array), largest.name))
    publish(home, version, model.SerializeToString())


def external_data(home: Path, version: int) -> None:
    """A tensor lies in another file, which could be any file of the machine."""
    model = onnx.load_model_from_string(source(home))
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = largest.raw_data
    onnx.external_data_helper.set_external_data(largest, location="weights.bin", offset=0, length=len(data))
    largest.ClearField("raw_data")
    largest.data_location = onnx.TensorProto.EXTERNAL
    publish(home, version, model.SerializeToString())
    (home / str(version) / "weights.bin").write_bytes(data)


def foreign_operator(home: Path, version: int) -> None:
    """A node of a domain that needs a library of its own."""
    model = onnx.load_model_from_string(source(home))
    model.graph.node.append(helper.make_node("Anything", ["logits"], ["unused"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    publish(home, version, model.SerializeToString())


def half_copied(home: Path, version: int) -> None:
    """Only the first half of the file has arrived."""
    data = source(home)
    publish(home, version, data[: len(data) // 2], promised=data)


def complete(home: Path, version: int) -> None:
    """The other half of `half_copied` arrives."""
    with (home / str(version) / "model.onnx").open("ab") as file:
        data = source(home)
        file.write(data[file.tell() :])


KINDS: dict[str, Callable[[Path, int], None]] = {
    "corrupt": corrupt,
    "no model": no_model,
    "absent": absent,
    "wrong hash": wrong_hash,
    "wrong shape": wrong_shape,
    "wrong values": wrong_values,
    "external data": external_data,
    "foreign operator": foreign_operator,
    "half-copied": half_copied,
}
