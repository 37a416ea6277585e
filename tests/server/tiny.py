"""A tiny real model for the server's tests: the tensors of an AW-Net and a contract, made in milliseconds.

Its score is the mean of the red channel, so that a test can ask for each verdict: red below 0.41 is clean, above
0.77 adversarial. Omega looks at every pixel with other weights, so that a turned or mixed-up image is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.harness.processes import Server
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SIZE = 32
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
OMEGA = [("blocks.0.conv1", 0, 4), ("blocks.0.conv2", 4, 4), ("blocks.1.conv1", 8, 2)]
CHANNELS = 10
CALL: dict[str, Any] = {"verify": False, "timeout": 60}  # of httpx: no TLS here, and its set-up is slow


def graph(seed: int = 0, branches: Sequence[str] = ()) -> onnx.ModelProto:
    """The model without its contract. `branches`: further outputs of logits, each with weights of its own."""
    rng = np.random.default_rng(seed)
    constants = {
        "scale": np.float32(1 / 255),
        "mean_to_logits": rng.normal(0, 4, (3, len(LABELS))).astype(np.float32),
        "red": np.array([[1, -1], [0, 0], [0, 0]], np.float32),
        "red_bias": np.array([0, 1], np.float32),
        "pixels_to_omega": rng.normal(0, 0.05, (3 * SIZE * SIZE, CHANNELS)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["x"]),
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("MatMul", ["mean", "mean_to_logits"], ["logits"]),
        helper.make_node("Gemm", ["mean", "red", "red_bias"], ["p_type"]),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "pixels_to_omega"], ["omega"]),
    ]
    for name in branches:
        constants[f"mean_to_{name}"] = rng.normal(0, 4, (3, len(LABELS))).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["mean", f"mean_to_{name}"], [name]))
    widths = {"logits": len(LABELS), "p_type": 2, "omega": CHANNELS, **dict.fromkeys(branches, len(LABELS))}
    built = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", n]) for k, n in widths.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(built)
    return built


def tensor(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A TENSOR of the contract."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": data}


def contract_of(model: onnx.ModelProto) -> dict[str, Any]:
    """A right contract for `model`, golden values from onnxruntime."""
    image = np.random.default_rng(7).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    golden = dict(zip(names, session.run(names, {"image": image}), strict=True))
    return {
        "schema_version": 1,
        "labels": list(LABELS),
        "preprocessing": {
            "size": SIZE,
            "resize": "short_side",
            "filter": "bilinear_antialias",
            "crop": "center",
            "orientation": "exif",
        },
        "thresholds": {
            "suspicious": {"score": 0.41, "fpr": 0.05},
            "adversarial": {"score": 0.77, "fpr": 0.01},
        },
        "reference": {
            "images": 100,
            "score_histogram": {"edges": [0, 0.5, 1], "counts": [90, 10]},
            "omega_mean": tensor(np.zeros(CHANNELS, np.float32)),
            "omega_std": tensor(np.ones(CHANNELS, np.float32)),
        },
        "omega": [{"name": name, "offset": offset, "length": length} for name, offset, length in OMEGA],
        "golden": {
            "image": tensor(image),
            **{name: tensor(value) for name, value in golden.items()},
            "tolerance": dict.fromkeys(names, 1e-3),
        },
        "provenance": {"recipe": "tests", "checkpoint_sha256": "0" * 64},
    }


def publish(
    repository: Path,
    version: str = "1",
    change: Callable[[dict[str, Any]], None] | None = None,
    *,
    name: str = "awnet",
    seed: int = 0,
    branches: Sequence[str] = (),
    manifest: bool = True,
) -> Path:
    """Write the tiny model into `repository`; `change` may spoil its contract first. Returns the repository.

    Models of other seeds give other logits and omega for the same image, and the same score. `branches`: see `graph`.
    """
    model = graph(seed, branches)
    contract = contract_of(model)
    if change:
        change(contract)
    helper.set_model_props(model, {"awnet.contract": json.dumps(contract, separators=(",", ":"))})
    write(repository / name / version, model.SerializeToString(), manifest=manifest)
    return repository


def write(folder: Path, model: bytes, *, manifest: bool = True) -> None:
    """A version's files, the manifest last; `folder` ends in the model's name and the version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest_of(folder, model)))


def manifest_of(folder: Path, model: bytes) -> dict[str, Any]:
    """A right manifest for `model` in `folder`."""
    return {
        "schema_version": 1,
        "model": folder.parent.name,
        "version": int(folder.name),
        "files": {"model.onnx": {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}},
    }


def plain(red: float, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A flat image whose score is `red`."""
    return Image.new("RGB", size, (round(255 * red), 60, 120))


def noise(width: int = SIZE, height: int = SIZE, seed: int = 0) -> Image.Image:
    """An image in which no two pixels can be swapped unnoticed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Running(Server):
    """A server with two threads that neither polls nor waits for balancers, and a client of it."""

    def __init__(self, repository: Path, **settings: object) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="awnet-")
        given = {"repository": repository, "threads": 2, "drain_seconds": 0, "poll_seconds": 0, **settings}
        super().__init__(Path(self._folder.name), **given)
        self.http = httpx.Client(base_url=self.url, **CALL)

    def ready(self) -> bool:
        """What its readiness probe says; not ready where nobody answers."""
        try:
            return self.http.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        super().wait_ready(seconds)


def spoilt(data: bytes) -> list[bytes]:
    """A file cut off anywhere, and with some of its first bytes changed at random; the same each time."""
    rng = random.Random(0)
    found = [data[:end] for end in range(0, len(data), 97)]
    for _ in range(500):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            copy[rng.randrange(min(len(copy), 3000))] = rng.randrange(256)
        found.append(bytes(copy))
    return found


def spoilt_pixels(png: bytes) -> bytes:
    """A PNG of which only the decoder finds that its pixels are none: its check sums are right."""
    at = png.index(b"IDAT")
    length = int.from_bytes(png[at - 4 : at], "big")
    data = bytearray(png[at + 4 : at + 4 + length])
    data[20] ^= 0xFF
    crc = zlib.crc32(b"IDAT" + data).to_bytes(4, "big")
    return png[: at + 4] + data + crc + png[at + 8 + length :]
