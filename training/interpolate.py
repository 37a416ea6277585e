"""An AW-Net part of the way back to the static network that its trunk started from: weights in between, no training.

    python -m training.interpolate --ckpt awnet.pt --static trunk.pt --share 0.2 --out between.pt

Adversarial training that went on too long gives clean accuracy for robustness. Weights between its start and its end
are a network too where both lie in one basin (Wortsman et al., arXiv 2109.01903, for fine-tuned networks), and may lose
less of one than they regain of the other: measure shares on validation images. Filters, classifier and batch norms of
both branches, statistics included, go to those of the static network; signal heads go to zero, where omega is 1, as an
AW-Net starts; extractor and type head stay. The result has no calibration: `training.calibrate` gives it one.

Exit status: 0; 2 where nothing could be made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from torch import nn

from . import checkpoint, files
from .awnet import AWNet
from .network import Network
from .trainer.build import copy_static
from .trainer.recipe import RecipeError
from .trainer.validation import git_commit


def between(net: AWNet, static: Network, share: float) -> AWNet:
    """A new network, (1 - share) `net` + share `static`, see the module's docstring.

    Raises:
        ValueError: share is not within 0 and 1, or the static network is not of the trunk's shape.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies within 0 and 1, not {share}")
    start = deepcopy(net)
    try:
        copy_static(start, "trunk", static)
    except (RecipeError, RuntimeError) as error:
        raise ValueError(f"the static network is no trunk of this AW-Net: {error}") from error
    for head in start.signal_heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    out, goal = deepcopy(net), start.state_dict()
    state = {k: v.lerp(goal[k], share) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    out.load_state_dict(state)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m training.interpolate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="checkpoint of an AW-Net")
    add("--static", type=Path, required=True, help="checkpoint of the static network that its trunk started from")
    add("--share", type=float, required=True, help="how far back: 0 is the AW-Net, 1 the static trunk")
    add("--out", type=Path, required=True, help="the checkpoint in between (.pt)")
    args = parser.parse_args(argv)
    try:
        loaded, static = checkpoint.load(args.ckpt), checkpoint.load(args.static)
        net = between(loaded.awnet, static.network, args.share)
        sources = {"awnet": args.ckpt, "static": args.static}
        document = checkpoint.pack(
            net,
            labels=loaded.labels,
            recipe={
                "name": f"interpolated/{args.ckpt.stem}",
                "program": "training.interpolate",
                "share": args.share,
                "of": {name: {"file": path.name, "sha256": files.sha256(path)} for name, path in sources.items()},
            },
            provenance={"commit": git_commit()},
            half=True,
        )
        checkpoint.save(args.out, document)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
