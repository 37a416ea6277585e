"""Builds what a recipe names: network, objective, optimiser, schedule of the learning rates.

What a recipe asks for that does not exist is a `RecipeError` that names the key. Files under [init] and [objective] are
relative to a folder that the caller names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.ascent import Budget
from ..data.answers import Answers
from ..networks import checkpoint
from ..networks.awnet import AWNet, AWNetConfig
from ..networks.baselines import StaticConfig, build_static
from ..networks.network import Network
from ..networks.pretrained import PRETRAINED, load_pretrained
from .adversary import Adversary
from .distillation import BoundedDistillation, Mtard, Rslad
from .objectives import Mart, Objective, PgdAt, Standard, Trades
from .pretraining import DetectorPretraining
from .recipe import RECIPES, RecipeError, check_value, nearest


def starting_network(
    recipe: Mapping[str, Mapping[str, Any]], folder: Path, num_classes: int, image_size: int
) -> Network:
    """The network that a training starts from: built, filled from earlier stages in `folder`, frozen where it says so.

    Raises:
        RecipeError: [network] or [init] ask for what does not exist, or for another size of images.
    """
    sized = {"image_size": image_size} if recipe["network"]["kind"] == "awnet" else {}
    net = build_network({**sized, **recipe["network"]}, num_classes)
    if isinstance(net, AWNet) and net.config.image_size != image_size:
        raise RecipeError(
            f"network.image_size is {net.config.image_size}, and these images have {image_size} pixels a side: "
            "leave network.image_size out, and it is theirs"
        )
    initialise(net, recipe["init"], folder)
    for module in recipe["network"]["freeze"]:
        try:
            net.get_submodule(module).requires_grad_(False)
        except AttributeError as error:
            raise RecipeError(f"network.freeze: this network has no part {module!r}") from error
    return net


def build_network(spec: Mapping[str, Any], num_classes: int) -> Network:
    """The network of a recipe's [network] table, freshly initialised; RecipeError for an unknown key."""
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k not in ("kind", "freeze")
    }
    try:
        if spec["kind"] in ("awnet", "static"):
            check_options("network", fields, AWNetConfig if spec["kind"] == "awnet" else StaticConfig)
        if spec["kind"] == "awnet":
            net: Network = AWNet(AWNetConfig(num_classes=num_classes, **fields))
        elif spec["kind"] == "static":
            net = build_static(StaticConfig(num_classes=num_classes, **fields))
        else:
            raise ValueError(f"network.kind must be 'awnet' or 'static', not {spec['kind']!r}")
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[network]: {error}") from error
    return net


def check_options(table: str, options: Mapping[str, Any], built: Callable[..., object]) -> None:
    """RecipeError for an option that `built` has not, or a value that is not of its default's type or in its range."""
    given_here = ("num_classes", "adversary")  # by the data set and by [attack]
    known = {name: p for name, p in inspect.signature(built).parameters.items() if name not in given_here}
    for name in options:
        if name not in known:
            raise RecipeError(f"unknown key {table}.{name}; known are {', '.join(known)}{nearest(name, known)}")
    for name, parameter in known.items():
        if name in options:
            default = "" if parameter.default in (parameter.empty, None) else parameter.default  # networks: paths
            check_value(f"{table}.{name}", options[name], default)


def initialise(net: Network, spec: Mapping[str, Any], folder: Path) -> None:
    """Weights from earlier stages: `checkpoint` (whole network), `trunk` and `extractor` (a static ResNet each),
    `detector` (extractor and type head of another AW-Net).

    A static trunk gives an AW-Net its filters and classifier, and its batch norms to *both* branches, which
    then start as the same network. RecipeError where shapes do not fit.
    """
    known = ("checkpoint", "trunk", "extractor", "detector")
    for unknown in sorted(set(spec) - set(known)):
        raise RecipeError(f"unknown key init.{unknown}; known are {', '.join(known)}{nearest(unknown, known)}")
    try:
        if "checkpoint" in spec:
            net.load_state_dict(earlier("init.checkpoint", spec["checkpoint"], folder).state_dict())
        for part in ("trunk", "extractor"):
            if part in spec:
                target = _awnet(net, f"init.{part}")
                copy_static(target, part, earlier(f"init.{part}", spec[part], folder))
        if "detector" in spec:
            target = _awnet(net, "init.detector")
            source = _awnet(earlier("init.detector", spec["detector"], folder), "init.detector")
            target.extractor.load_state_dict(source.extractor.state_dict())
            target.type_head.load_state_dict(source.type_head.state_dict())
    except RuntimeError as error:
        what = str(error).splitlines()[1:2] or [str(error)]  # torch lists every tensor, a line each
        raise RecipeError(f"[init] does not fit the network: {what[0].strip()}") from error


def earlier(key: str, file: str, folder: Path) -> Network:
    """The network of an earlier stage, `file` in `folder`; RecipeError with the recipes that make it where it lacks."""
    try:
        return checkpoint.load(folder / file).network
    except FileNotFoundError as error:
        run = Path(file).parent.name
        recipes = sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.toml") if p.stem == run)
        made = f"; train that stage first: --recipe {' or '.join(recipes)} --out {folder / run}" if recipes else ""
        raise RecipeError(f"{key}: {error}{made}") from error
    except checkpoint.CheckpointError as error:
        raise RecipeError(f"{key}: {error}") from error


def _awnet(net: Network, key: str) -> AWNet:
    if not isinstance(net, AWNet):
        raise RecipeError(f"{key} needs an AW-Net, not a {net.kind} network")
    return net


def copy_static(net: AWNet, part: str, static: Network) -> None:
    """A static ResNet's weights into the trunk or the extractor of `net`; both use the same names but for the norms."""
    target = net if part == "trunk" else net.extractor
    own = target.state_dict()
    prefixes = ("stem.", "blocks.", "classifier.") if part == "trunk" else ("stem.", "blocks.")
    state: dict[str, Tensor] = {}
    for name, value in static.state_dict().items():
        name = name.removeprefix("body.")
        if name.startswith(prefixes):
            for branch in ("nat.", "adv."):
                renamed = name.replace("norm.", branch)
                if renamed in own:
                    state[renamed] = value
    missing = [k for k in own if k.startswith(prefixes) and k not in state]
    if missing:
        raise RecipeError(f"init.{part}: the static network has nothing for {missing[0]}")
    target.load_state_dict(state, strict=False)


def load_teacher(key: str, spec: str, folder: Path, device: torch.device) -> Network:
    """A checkpoint relative to `folder`, or a network trained by others: NAME=FILE with a name of `PRETRAINED`."""
    name, equals, file = spec.partition("=")
    if equals and name in PRETRAINED:
        net: Network = load_pretrained(name, folder / file)
    else:
        net = earlier(key, spec, folder)
    return net.to(device).to(memory_format=torch.channels_last)


def build_objective(recipe: Mapping[str, Mapping[str, Any]], folder: Path, device: torch.device) -> Objective:
    """The objective of a recipe; teachers are checkpoints named relative to `folder`."""
    attack, options = dict(recipe["attack"]), dict(recipe["objective"])
    eps, step = attack.pop("eps") / 255, attack.pop("step") / 255
    name, steps = options.pop("name"), attack.pop("steps")
    if name not in OBJECTIVES:
        raise RecipeError(f"objective.name must be one of {', '.join(OBJECTIVES)}, not {name!r}")
    if name == "detector" and recipe["network"]["kind"] != "awnet":
        raise RecipeError(f"objective.name 'detector' needs an AW-Net, not network.kind {recipe['network']['kind']!r}")
    if name == "bounded":
        if recipe["network"]["kind"] != "awnet" or recipe["network"].get("mixing") != "bounded":
            raise RecipeError("objective.name 'bounded' needs an AW-Net with network.mixing 'bounded'")
        if recipe["data"]["padding"]:
            raise RecipeError("objective.name 'bounded' needs data.padding 0: the answers are to unshifted images")
    if name == "n_fgsm":  # its own attack, whatever [attack] says of start and steps: one step of eps
        attack, step, steps = {**attack, "start": "n_fgsm"}, eps, 1
    try:
        check_options("objective", options, OBJECTIVES[name])
        adversary = Adversary(Budget(eps, step, steps), **attack, folded=not recipe["runtime"]["compile"])
        for option in ("teacher", "nat_teacher", "adv_teacher", "signals_teacher"):
            if option in options:
                options[option] = load_teacher(f"objective.{option}", options[option], folder, device)
        if "surrogates" in options:
            found = [load_teacher("objective.surrogates", spec, folder, device) for spec in options["surrogates"]]
            options["surrogates"] = found
        if "answers" in options:
            options["answers"] = Answers.load(folder / options["answers"])
        if "signals_teacher" in options:
            same_signals(options["signals_teacher"], recipe["network"])
        return Standard(**options) if name == "standard" else OBJECTIVES[name](adversary, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[objective] {name}: {error}") from error


def same_signals(teacher: Network, spec: Mapping[str, Any]) -> None:
    """RecipeError where the omega of `teacher` is not of the convolutions that a recipe's [network] has."""
    wanted = AWNetConfig(**{key: spec[key] for key in ("depth", "width") if key in spec})
    has = _awnet(teacher, "objective.signals_teacher").config
    if (has.depth, has.width) != (wanted.depth, wanted.width):
        raise RecipeError(
            f"objective.signals_teacher has depth {has.depth} and width {has.width}, network {wanted.depth} and "
            f"{wanted.width}: omega is of other convolutions"
        )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "pgd_at": PgdAt,
    "n_fgsm": PgdAt,
    "trades": Trades,
    "mart": Mart,
    "rslad": Rslad,
    "mtard": Mtard,
    "bounded": BoundedDistillation,
    "detector": DetectorPretraining,
}


def parameter_groups(net: nn.Module, optim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trunk at `lr`, the adversarial weight regulator (the heads) at `regulator_lr` (sec. 5.1)."""
    heads: list[nn.Parameter] = []
    trunk: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            (heads if name.startswith(("type_head.", "signal_heads.")) else trunk).append(parameter)
    groups = [{"params": trunk, "lr": optim["lr"]}, {"params": heads, "lr": optim["regulator_lr"]}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: list[dict[str, Any]], optim: Mapping[str, Any], fused: bool | None = None
) -> torch.optim.Optimizer:
    """'sgd' is the paper's; 'adamw' is what a detector from scratch needs (with SGD it learns nothing).

    `fused` updates all weights in one kernel.
    """
    decay = optim["weight_decay"]
    if optim["optimizer"] == "sgd":
        if optim["nesterov"] and not optim["momentum"]:
            raise RecipeError("optim.nesterov needs an optim.momentum above 0")
        momentum, nesterov = optim["momentum"], optim["nesterov"]
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=fused)
    if optim["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=fused)
    raise RecipeError(f"optim.optimizer must be sgd or adamw, not {optim['optimizer']!r}")


def schedule(optim: Mapping[str, Any], steps_per_epoch: int) -> Callable[[int], float]:
    """step -> factor of the base learning rates."""
    total = optim["epochs"] * steps_per_epoch
    if optim["schedule"] == "triangular":  # up over `warmup` of the run, down to 0.002 at least
        up = max(1, round(total * optim["warmup"]))
        return lambda step: min((step + 1) / up, max(0.002, (total - step) / max(1, total - up)))
    if optim["schedule"] == "multistep":
        marks = [m * steps_per_epoch for m in optim["milestones"]]
        return lambda step: float(0.1 ** sum(step >= m for m in marks))
    if optim["schedule"] == "constant":
        return lambda step: 1.0
    raise RecipeError(f"optim.schedule must be triangular, multistep or constant, not {optim['schedule']!r}")
