"""The options of `training.audit`: read without torch, in no time."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..options import DATA_DIR_HELP, DEVICES, MODES

PROG = "python -m training.audit"

AUDIT = """Audits a checkpoint: each threat level, its controls, false positives, and whether the audit can be believed.

    {prog} --ckpt best.pt --data-dir D --out audit
    {prog} --ckpt training/checkpoints/awnet-robust-domains.pt --data-dir D --out audit \\
        --static training/checkpoints/robust-teacher.pt --surrogate vgg11=training/checkpoints/surrogate-vgg11.pt
    {prog} --ckpt best.pt --data-dir D --out audit-robust --mode robust
    {prog} --ckpt static.pt --data-dir D --out audit-static --budget 5

Writes OUT/audit.json, OUT/audit.md with its plots, OUT/card.json (for `export.onnx --card`), OUT/t0/*.npz (adversarial
images of the surrogates, for an audit of model.onnx) and OUT/adversarial/*.npz. The speed of the networks on this
machine is measured first; the budget then decides how many images each group of parts gets, never how strong an attack
is, and the report says what was cut. A part that fails stops nothing and is named. Ctrl-C and the same command again
go on from the last finished batches.

Exit status: 0; 1 where the linter fails or a part did, by name; 2 where nothing could be audited; 130 after Ctrl-C.
"""


def audit_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options of an audit, started as `prog`."""
    parser = argparse.ArgumentParser(
        prog, description=AUDIT.format(prog=prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint of an AW-Net or a static network")
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--out", type=Path, required=True, metavar="DIR", help="receives the report, the plots and the images")
    add("--static", type=Path, metavar="FILE", help="control: a static network trained alike (default: none)")
    add(
        "--detector",
        type=Path,
        metavar="FILE",
        help="control: the AW-Net whose detector stands beside the static network (default: --ckpt's own)",
    )
    add(
        "--surrogate",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="networks of a T0 attacker; none of them may have trained or chosen the network (default: none, no T0)",
    )
    add(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="its exported file, compared with it under attack (default: none)",
    )
    add("--mode", default="auto", choices=MODES, help="which branch answers, see docs/glossary.md (default: auto)")
    add("--budget", type=float, default=60.0, metavar="MINUTES", help="about how long it may take (default: 60)")
    add("--limit", type=int, metavar="N", help="at most the first N images for any part (default: as planned)")
    example = "such as clean worst_case evasion; docs/audit.md lists them"
    add("--parts", nargs="+", metavar="GROUP", help=f"only these groups, {example} (default: all)")
    add("--batch-size", type=int, default=100, metavar="N", help="images computed at once (default: 100)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one, or all where that measures faster)")
    add("--device", default="cpu", help=DEVICES)
    add("--seed", type=int, default=0, help="seed of the attacks' random numbers (default: 0)")
    add("--fresh", action="store_true", help="replace a report instead of going on with it")
    return parser
