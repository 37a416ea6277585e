"""The options of `export.onnx`, and what they may be: read without torch and onnx, in no time."""

from __future__ import annotations

import argparse
from pathlib import Path

PROG = "python -m export.onnx"
OPSET = 20
# How a model may answer, and which output answers so; the modes but "auto" answer by one branch.
MODES = {"auto": "logits", "robust": "logits_adv", "natural": "logits_nat"}
# How numbers are stored and computed: float16-weights stores filters and matrices so and computes in float32, int8
# computes the trunk's convolutions in integers (`int8`).
PRECISIONS = ("float32", "float16-weights", "int8")

EXAMPLES = """examples:
  {prog} --ckpt runs/small/d-robust/best.pt      # what `make train-small` made
  {prog} --ckpt best.pt --repository /srv/models --version 7
  {prog} --ckpt best.pt --data-dir data          # parity on real test images as well
  {prog} --ckpt best.pt --precision float16-weights      # half the size, the same answers
"""


def export_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options of an export, started as `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Turn a checkpoint into a version of a model repository, once onnxruntime agrees with torch.",
        epilog=EXAMPLES.format(prog=prog),
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
        default=OPSET,
        metavar="N",
        help="ONNX operator set that the graph is written in (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="what the network was trained on: parity on its test images, too"
    )
    parser.add_argument(
        "--card", type=Path, metavar="FILE", help="an audit's card.json, which the server shows with the model"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["auto"],
        metavar="MODE",
        help="how the model may be asked to answer: auto, which it always has, robust (the adversarial branch alone), "
        "natural; a network with bounded mixing has all (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="float16-weights stores filters and matrices in float16, half the file, and computes in float32 as "
        "before; int8 computes the trunk's convolutions in 8 bits, needs --data-dir, and is refused where classes "
        "would change too often (default: %(default)s)",
    )
    return parser
