"""An AW-Net part of the way back to the network that it started from: weights in between, no training.

    python -m training.interpolate --ckpt awnet.pt --static trunk.pt --share 0.2 --out between.pt
    python -m training.interpolate --ckpt awnet.pt --awnet earlier.pt --share 0.3 --out between.pt
    python -m training.interpolate --ckpt a.pt --awnet other.pt --parts extractor type_head --share 0.5 --out between.pt

Adversarial training that went on too long gives clean accuracy for robustness. Weights between its start and its end
are a network too where both lie in one basin (Wortsman et al., arXiv 2109.01903, for fine-tuned networks), and may lose
less of one than they regain of the other: measure shares on validation images. Between two AW-Nets all weights and
statistics are interpolated, or those of some parts; the signal heads were made for other features then, and are to
learn again. Towards a static network filters, classifier and batch norms of both branches go to those of it; signal
heads go to zero, where omega is 1, as an AW-Net starts; extractor and type head stay. The result has no
calibration: `training.calibrate` gives it one.

Exit status: 0; 2 where nothing could be made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from torch import nn

from .core import files
from .networks import checkpoint
from .networks.awnet import AWNet
from .networks.network import Network
from .trainer.build import copy_static
from .trainer.recipe import RecipeError
from .trainer.validation import git_commit


def between(net: AWNet, start: Network, share: float, parts: Sequence[str] = ()) -> AWNet:
    """A new network, (1 - share) `net` + share `start`, in these `parts` or in all; see the module's docstring.

    Raises:
        ValueError: share is not within 0 and 1, or `start` is no static network of the trunk's shape, nor an AW-Net of
            the whole one's.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies within 0 and 1, not {share}")
    out, goal = deepcopy(net), (start if isinstance(start, AWNet) else as_awnet(net, start)).state_dict()
    if unknown := set(parts) - {name for name, _ in net.named_children()}:
        raise ValueError(f"this network has no part {min(unknown)!r}")
    state, goal = (
        {k: v for k, v in all_of.items() if not parts or k.partition(".")[0] in parts}
        for all_of in (net.state_dict(), goal)
    )
    if {k: v.shape for k, v in goal.items()} != {k: v.shape for k, v in state.items()}:
        raise ValueError("the two AW-Nets are not of one shape: there are no weights in between")
    out.load_state_dict(
        net.state_dict() | {k: v.lerp(goal[k], share) if v.is_floating_point() else v for k, v in state.items()}
    )
    return out


def as_awnet(net: AWNet, static: Network) -> AWNet:
    """`net` as it started from a static network: both branches are that one, and omega is 1."""
    start = deepcopy(net)
    try:
        copy_static(start, "trunk", static)
    except (RecipeError, RuntimeError) as error:
        raise ValueError(f"the static network is no trunk of this AW-Net: {error}") from error
    for head in start.signal_heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return start


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m training.interpolate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="checkpoint of an AW-Net")
    started = parser.add_mutually_exclusive_group(required=True)
    started.add_argument("--static", type=Path, help="checkpoint of the static network that its trunk started from")
    started.add_argument("--awnet", type=Path, help="checkpoint of the AW-Net that it started from")
    add("--parts", nargs="+", default=[], metavar="PART", help="of an AW-Net that are interpolated (default: all)")
    add("--share", type=float, required=True, help="how far back: 0 is the AW-Net, 1 where it started")
    add("--out", type=Path, required=True, help="the checkpoint in between (.pt)")
    args = parser.parse_args(argv)
    try:
        loaded = checkpoint.load(args.ckpt)
        start = checkpoint.load(args.static).network if args.static else checkpoint.load(args.awnet).awnet
        net = between(loaded.awnet, start, args.share, args.parts)
        sources = {"awnet": args.ckpt, "static" if args.static else "start": args.static or args.awnet}
        document = checkpoint.pack(
            net,
            labels=loaded.labels,
            recipe={
                "name": f"interpolated/{args.ckpt.stem}",
                "program": "training.interpolate",
                "share": args.share,
                **({"parts": args.parts} if args.parts else {}),
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
