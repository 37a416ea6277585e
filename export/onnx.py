"""`python -m export.onnx --ckpt best.pt`: one checkpoint in, one proven model in the repository.

Run it by name, never as a file: inside, `import onnx` means the library, because imports are absolute.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from domain import __version__

from .graph import contract, graph, int8, parity
from .graph.source import AWNet, images_of, load
from .options import PROG, export_parser
from .repository.layout import METADATA_KEY, MODEL_FILE
from .repository.repository import check_free, publish

GOLDEN_IMAGES = 8  # half of them attacked
MAX_BYTES = 2**31 - 1  # protobuf's limit; beyond it weights would have to live in a second file


class ExportError(RuntimeError):
    """The model cannot be exported as it is."""


def export_checkpoint(
    ckpt: Path,
    repository: Path,
    *,
    name: str = "awnet",
    version: int | None = None,
    opset: int = graph.OPSET,
    data_dir: Path | None = None,
    card: Path | None = None,
    modes: Collection[str] = ("auto",),
    precision: str = "float32",
) -> Path:
    """Export, prove, publish; returns the version folder, which holds `model.onnx`.

    Args:
        ckpt: a calibrated AW-Net checkpoint.
        repository: the model repository; made where it does not exist.
        name, version: of the model; the next free version where None.
        data_dir: holds what the network was trained on; parity then covers real test images too. int8 needs it.
        card: JSON object with an audit's figures, which `GET /model` returns.
        modes: of `graph.MODES`, how the model may be asked to answer; a network with bounded mixing has all.
        precision: of `contract.PRECISIONS`.

    Raises:
        FileNotFoundError: no checkpoint, or no data set in `data_dir`.
        checkpoint.CheckpointError, contract.ContractError, graph.GraphError, parity.ParityError,
        int8.PrecisionError, repository.RepositoryError, ExportError: each says what is wrong; nothing is published.
    """
    return _export(ckpt, repository, name, version, opset, data_dir, card, modes, precision)[0]


def _export(
    ckpt: Path,
    repository: Path,
    name: str,
    version: int | None,
    opset: int,
    data_dir: Path | None,
    card: Path | None,
    modes: Collection[str],
    precision: str,
) -> tuple[Path, list[object]]:
    """The version folder, and the reports of what was proven, for people."""
    # What can be refused at once is, before minutes of attacks.
    check_free(repository, name=name, version=version)
    checkpoint = load(ckpt)
    net = checkpoint.awnet
    figures = None if card is None else read_card(card)
    contract.check(checkpoint, figures, modes, precision)
    checkpoint_sha256 = hashlib.sha256(ckpt.read_bytes()).hexdigest()
    if figures is not None and figures["checkpoint_sha256"] != checkpoint_sha256:
        raise ExportError(f"{card} is the card of another checkpoint: the figures are not those of {ckpt}")
    if precision == "int8" and data_dir is None:
        raise ExportError("int8 needs --data-dir: training images set its ranges, validation images judge it")
    if precision == "int8" and figures is not None:
        raise ExportError("a card is about the network in float32, so a model in int8 cannot carry it")
    model = graph.build(
        net,
        modes=modes,
        half_weights=precision == "float16-weights",
        blocked=False if precision == "int8" else None,  # integers have a layout of their own
        opset=opset,
    )
    if model.ByteSize() > MAX_BYTES:
        raise ExportError(f"the model has {model.ByteSize():,} bytes, more than one ONNX file holds ({MAX_BYTES:,})")
    pictures = images_of(checkpoint, data_dir) if data_dir is not None else None
    real = parity.test_images(net, pictures.test) if pictures is not None else {}

    probes = parity.probes(net)
    outputs = graph.outputs_of(graph.modes_of(net, modes))
    images, answers = golden(net, probes, outputs)
    limits, tolerance = parity.TOLERANCE, dict.fromkeys(outputs, contract.GOLDEN_TOLERANCE)
    told: list[object] = []
    if precision == "int8" and pictures is not None:
        told.append(parity.prove(net, model.SerializeToString(), {**probes, **real}))
        model = int8.quantised(model, pictures.train.images)
        told.append(int8.judge(net, model, pictures.validation))
        images = int8.golden(model, probes, GOLDEN_IMAGES // len(probes))
        answers = parity.answers(net, images, outputs)
        classes = set(outputs) - {"p_type", "omega"}
        limits = {name: limit for name, limit in limits.items() if name not in classes}
        answers |= {name: value for name, value in int8.answers(model, images).items() if name in classes}
        tolerance |= dict.fromkeys(classes, int8.GOLDEN_TOLERANCE)
    document = contract.build(
        checkpoint,
        {"image": images.numpy(), **answers},
        checkpoint_sha256=checkpoint_sha256,
        exporter=f"awnet {__version__}, torch {torch.__version__.split('+')[0]}, opset {opset}",
        card=figures,
        modes=modes,
        precision=precision,
        tolerance=tolerance,
    )
    model.metadata_props.add(key=METADATA_KEY, value=contract.encode(document))
    onnx.checker.check_model(model, full_check=True)
    data = bytes(model.SerializeToString(deterministic=True))
    told.append(parity.prove(net, data, {**probes, **real}, limits))
    return publish(data, repository, name=name, version=version), told


def read_card(path: Path) -> dict[str, Any]:
    """An audit's figures; FileNotFoundError, or ExportError where the file is no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"no card at {path}")
    try:
        card = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from None
    if not isinstance(card, dict):
        raise ExportError(f"{path} is not a JSON object")
    return card


def golden(
    net: AWNet, probes: Mapping[str, Tensor], outputs: Collection[str]
) -> tuple[Tensor, dict[str, parity.Array]]:
    """Images spread over every group of probes, and the network's answers to them, by output."""
    count = GOLDEN_IMAGES // len(probes)
    images = torch.cat([images[:: max(1, len(images) // count)][:count] for images in probes.values()])
    return images, parity.answers(net, images, outputs)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command line, as `prog`; 0 published, 2 refused."""
    options = export_parser(prog).parse_args(arguments)
    try:
        folder, told = _export(
            options.ckpt,
            options.repository,
            options.name,
            options.version,
            options.opset,
            options.data_dir,
            options.card,
            options.modes,
            options.precision,
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"not exported: {error}", file=sys.stderr)
        return 2
    size = (folder / MODEL_FILE).stat().st_size
    print(*told, sep="\n")
    print(f"{folder / MODEL_FILE}: {size / 1e6:.1f} MB, opset {options.opset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
