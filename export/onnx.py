"""`python -m export.onnx --ckpt best.pt`: one checkpoint in, one proven model in the repository.

Run it by name, never as a file: inside, `import onnx` means the library, because imports are absolute.
"""

from __future__ import annotations

import argparse
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

from . import contract, graph, int8, parity
from .layout import METADATA_KEY, MODEL_FILE
from .repository import check_free, publish
from .source import AWNet, load, training_and_validation

GOLDEN_IMAGES = 8  # half of them attacked
MAX_BYTES = 2**31 - 1  # protobuf's limit; beyond it weights would have to live in a second file

EXAMPLES = """examples:
  python -m export.onnx --ckpt runs/small/d-robust/best.pt      # what `make train-small` made
  python -m export.onnx --ckpt best.pt --repository /srv/models --version 7
  python -m export.onnx --ckpt best.pt --data-dir data          # parity on real test images as well
  python -m export.onnx --ckpt best.pt --precision float16-weights      # half the size, the same answers
"""


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
        data_dir: holds cifar-10-batches-py/; parity then covers real test images too. int8 needs it, with the set that
            the network was trained on.
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
    model = graph.build(net, modes=modes, half_weights=precision == "float16-weights", opset=opset)
    if model.ByteSize() > MAX_BYTES:
        raise ExportError(f"the model has {model.ByteSize():,} bytes, more than one ONNX file holds ({MAX_BYTES:,})")
    real = parity.test_images(net, data_dir) if data_dir is not None else {}

    probes = parity.probes(net)
    outputs = graph.outputs_of(graph.modes_of(net, modes))
    images, answers = golden(net, probes, outputs)
    limits, tolerance = parity.TOLERANCE, dict.fromkeys(outputs, contract.GOLDEN_TOLERANCE)
    told: list[object] = []
    if precision == "int8" and data_dir is not None:
        told.append(parity.prove(net, model.SerializeToString(), {**probes, **real}))
        training, validation = training_and_validation(checkpoint, data_dir)
        model = int8.quantised(model, training.images)
        told.append(int8.judge(net, model, validation))
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 published, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m export.onnx",
        description="Turn a checkpoint into a version of a model repository, once onnxruntime agrees with torch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="a calibrated AW-Net checkpoint")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        metavar="DIR",
        help="folder that the version is written to, made where it is missing (default: %(default)s)",
    )
    parser.add_argument("--name", default="awnet", help="name of the model (default: %(default)s)")
    parser.add_argument("--version", type=int, metavar="N", help="number of the version (default: the next free one)")
    parser.add_argument(
        "--opset",
        type=int,
        default=graph.OPSET,
        metavar="N",
        help="ONNX operator set that the graph is written in (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="holds cifar-10-batches-py/: parity on its test images as well"
    )
    parser.add_argument(
        "--card", type=Path, metavar="FILE", help="an audit's card.json, which the server shows with the model"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=graph.MODES,
        default=["auto"],
        metavar="MODE",
        help="how the model may be asked to answer: auto, which it always has, robust (the adversarial branch alone), "
        "natural; a network with bounded mixing has all (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=contract.PRECISIONS,
        default="float32",
        help="float16-weights stores filters and matrices in float16, half the file, and computes in float32 as "
        "before; int8 computes the trunk's convolutions in 8 bits, needs --data-dir, and is refused where classes "
        "would change too often (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
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
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"not exported: {error}", file=sys.stderr)
        return 2
    size = (folder / MODEL_FILE).stat().st_size
    print(*told, sep="\n")
    print(f"{folder / MODEL_FILE}: {size / 1e6:.1f} MB, opset {options.opset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
