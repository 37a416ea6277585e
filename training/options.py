"""The options of `training.train`, and words that several programs' help shares: read without torch, in no time."""

from __future__ import annotations

import argparse
from pathlib import Path

DATA_DIR_HELP = (
    "folder that holds cifar-10-batches-py/, cifar-100-python/ or tiny-imagenet-200/, or pictures of your own "
    "(train/CLASS/*.png); it must be there, and a CIFAR is downloaded into a folder that holds nothing else"
)
DEVICES = "cpu (default), cuda, cuda:1, ..."  # as --help names them
MODES = ("auto", "robust", "natural")  # of `network.MODES`

TRAIN = """Train a network by a recipe.

    {prog} --recipe small/0-trunk --data-dir data --out runs/0-trunk
    {prog} --recipe own/trunk --data-dir pictures --out runs/trunk      # pictures/train/CLASS/*.png
    {prog} --recipe ... --data-dir data --out runs/0-trunk --resume
    {prog} --recipe ... --data-dir data --out runs/try --set optim.epochs=2 --set network.width=8
    torchrun --standalone --nproc-per-node 4 -m training.train --recipe ... --device cuda --resume --stop-after 55

--out receives last.pt (every few minutes and after every epoch, for --resume), best.pt (the best validation
figure), history.json and TensorBoard logs. Ctrl-C and SIGTERM save the run after the step at hand, and say so; a
second one ends it at once and leaves last.pt as it was. Files that a recipe names under [init] and [objective] are
relative to the parent of --out, so that the stages of one training stand side by side. A recipe may extend another
one and state only what differs (`extends = "FILE"`).
Pictures of your own: docs/your-own-data.md. Several GPUs, small GPUs, chunks: docs/training.md.

exit status: 0 finished, or stopped by --stop-after; 2 refused, in one line; 130 stopped by a signal and saved
"""


def train_parser(prog: str = "python -m training.train") -> argparse.ArgumentParser:
    """The options of a training, started as `prog`."""
    parser = argparse.ArgumentParser(
        prog, description=TRAIN.format(prog=prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="a TOML file, or the name of one of training/recipes")
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--out", type=Path, required=True, metavar="RUN", help="folder of this run")
    add("--resume", action="store_true", help="go on with the run in --out (or start it)")
    add("--device", default="cpu", help=f"{DEVICES}; under torchrun, cuda is one GPU a process")
    add("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override the recipe")
    add("--stop-after", type=float, metavar="MINUTES", help="checkpoint and stop after this")
    add("--checkpoint-every", type=float, metavar="MINUTES", help="within an epoch too (runtime.checkpoint_minutes)")
    return parser
