"""Train a network by a recipe.

    python -m training.train --recipe training/recipes/small/0-trunk.toml --data-dir data --out runs/0-trunk
    python -m training.train --recipe ... --data-dir data --out runs/0-trunk --resume
    python -m training.train --recipe ... --data-dir data --out runs/try --set optim.epochs=2 --set network.width=8
    torchrun --standalone --nproc-per-node 4 -m training.train --recipe ... --device cuda --resume --stop-after 55

`--out` receives last.pt (every few minutes and after every epoch, for --resume), best.pt (the best validation
figure), history.json and TensorBoard logs. Files that a recipe names under [init] and [objective] are relative to
the parent of --out, so that the stages of one training stand side by side. Several GPUs, small GPUs, chunks:
docs/training.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import checkpoint
from training.attacks import Budget, pgd_trades
from training.awnet import ADVERSARIAL, AWNet, AWNetConfig
from training.data import SETS, ImageSet, Split, load_images, shuffled_batches
from training.detection import auroc, calibrate
from training.foreign import FOREIGN, load_foreign
from training.inner import Inner
from training.objectives import DetectorPretraining, Mart, Mtard, Objective, PgdAt, Rslad, Standard, Trades
from training.ranks import SOLO, Ranks, joined
from training.static import StaticConfig, StaticNet, build_static
from training.step import Runtime, train_step

DEFAULTS: dict[str, dict[str, Any]] = {
    "network": {"kind": "awnet", "freeze": []},
    "init": {},
    "objective": {"name": "pgd_at"},
    "attack": {
        "eps": 8.0,
        "step": 2.0,
        "steps": 10,
        "start": "normal",
        "forced": 0.0,
        "through": False,
        "evading": 0.0,
        "radii": [0.25, 0.5, 1.0],
        "detached": 0.0,
        "spread": 2.0,
    },
    "optim": {
        "epochs": 10,
        "batch_size": 128,
        "accumulate": 1,
        "optimizer": "sgd",
        "lr": 0.1,
        "regulator_lr": 0.01,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "onecycle",
        "warmup": 0.2,
        "milestones": [],
        "ema": 0.0,
        "awp": 0.0,
        "awp_from": 0,
    },
    "data": {"set": "cifar10", "seed": 0, "train_images": 0, "padding": 4},
    "validate": {"images": 2_000, "attack_steps": 10, "every": 1},
    "runtime": {
        "bf16": False,
        "compile": False,
        "threads": 0,
        "sync_batch_norm": False,
        "data_on_device": True,
        "checkpoint_minutes": 10.0,
    },
}


class RecipeError(ValueError):
    """The recipe asks for something that does not exist; the message names the key."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The recipe over the defaults, with `table.key=value` overrides (values in TOML) on top.

    Raises:
        RecipeError: unknown table or key, or an override that is not TOML.
    """
    with path.open("rb") as f:
        given = tomllib.load(f)
    for override in overrides:
        key, sign, value = override.partition("=")
        table, dot, name = key.partition(".")
        if not (sign and dot):
            raise RecipeError(f"--set needs table.key=value, not {override!r}")
        try:
            given.setdefault(table, {})[name] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            given.setdefault(table, {})[name] = value
    given.pop("about", None)
    recipe = {table: {**values, **given.pop(table, {})} for table, values in DEFAULTS.items()}
    if given:
        raise RecipeError(f"{path}: unknown table {', '.join(sorted(given))}; known are {', '.join(DEFAULTS)}")
    for table in ("attack", "optim", "data", "validate", "runtime"):
        unknown = set(recipe[table]) - set(DEFAULTS[table])
        if unknown:
            raise RecipeError(
                f"{path}: unknown key {table}.{sorted(unknown)[0]}; known are {', '.join(DEFAULTS[table])}"
            )
    if recipe["data"]["set"] not in SETS:
        raise RecipeError(f"data.set must be one of {', '.join(SETS)}, not {recipe['data']['set']!r}")
    return recipe


def build_network(spec: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The network of a recipe's [network] table, freshly initialised; RecipeError for an unknown key."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k not in ("kind", "freeze")}
    try:
        if spec["kind"] == "awnet":
            net: nn.Module = AWNet(AWNetConfig(num_classes=num_classes, **fields))
        elif spec["kind"] == "static":
            net = build_static(StaticConfig(num_classes=num_classes, **fields))
        else:
            raise ValueError(f"network.kind must be 'awnet' or 'static', not {spec['kind']!r}")
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[network]: {error}") from error
    return net


def initialise(net: nn.Module, spec: Mapping[str, Any], folder: Path) -> None:
    """Weights from earlier stages: `checkpoint` (whole network), `trunk` and `extractor` (a static ResNet each),
    `detector` (extractor and type head of another AW-Net).

    A static trunk gives an AW-Net its filters and classifier, and its batch norms to *both* branches, which
    then start as the same network. RecipeError where shapes do not fit.
    """
    unknown = set(spec) - {"checkpoint", "trunk", "extractor", "detector"}
    if unknown:
        raise RecipeError(f"unknown key init.{sorted(unknown)[0]}; known are checkpoint, trunk, extractor, detector")
    try:
        if "checkpoint" in spec:
            net.load_state_dict(checkpoint.load(folder / spec["checkpoint"]).network.state_dict())
        for part in ("trunk", "extractor"):
            if part in spec:
                assert isinstance(net, AWNet)
                copy_static(net, part, checkpoint.load(folder / spec[part]).network)
        if "detector" in spec:
            assert isinstance(net, AWNet)
            source = checkpoint.load(folder / spec["detector"]).network
            if not isinstance(source, AWNet):
                raise RecipeError("init.detector must be the checkpoint of an AW-Net")
            net.extractor.load_state_dict(source.extractor.state_dict())
            net.type_head.load_state_dict(source.type_head.state_dict())
    except RuntimeError as error:
        raise RecipeError(f"[init] does not fit the network: {error}") from error


def copy_static(net: AWNet, part: str, static: nn.Module) -> None:
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


def load_teacher(spec: str, folder: Path, device: torch.device) -> nn.Module:
    """A checkpoint relative to `folder`, or a network trained by others: NAME=FILE with a name of `FOREIGN`."""
    name, equals, file = spec.partition("=")
    if equals and name in FOREIGN:
        net: nn.Module = load_foreign(name, folder / file)
    else:
        net = checkpoint.load(folder / spec).network
    return net.to(device, memory_format=torch.channels_last)


def build_objective(recipe: Mapping[str, Mapping[str, Any]], folder: Path, device: torch.device) -> Objective:
    """The objective of a recipe; teachers are checkpoints named relative to `folder`."""
    attack, options = dict(recipe["attack"]), dict(recipe["objective"])
    eps, step = attack.pop("eps") / 255, attack.pop("step") / 255
    name, steps = options.pop("name"), attack.pop("steps")
    if name not in OBJECTIVES:
        raise RecipeError(f"objective.name must be one of {', '.join(OBJECTIVES)}, not {name!r}")
    if name == "n_fgsm":  # its own attack, whatever [attack] says of start and steps: one step of eps
        attack, step, steps = {**attack, "start": "n_fgsm"}, eps, 1
    try:
        inner = Inner(Budget(eps, step, steps), **attack)
        for option in ("teacher", "nat_teacher", "adv_teacher"):
            if option in options:
                options[option] = load_teacher(options[option], folder, device)
        return Standard(**options) if name == "standard" else OBJECTIVES[name](inner, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[objective] {name}: {error}") from error


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "pgd_at": PgdAt,
    "n_fgsm": PgdAt,
    "trades": Trades,
    "mart": Mart,
    "rslad": Rslad,
    "mtard": Mtard,
    "detector": DetectorPretraining,
}


def parameter_groups(net: nn.Module, optim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trunk at `lr`, the adversarial weight regulator (the heads) at `regulator_lr` (sec. 5.1)."""
    heads, trunk = [], []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            (heads if name.startswith(("type_head.", "signal_heads.")) else trunk).append(parameter)
    groups = [{"params": trunk, "lr": optim["lr"]}, {"params": heads, "lr": optim["regulator_lr"]}]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], optim: Mapping[str, Any]) -> torch.optim.Optimizer:
    """'sgd' is the paper's; 'adamw' is what a detector from scratch needs (with SGD its loss stays at chance)."""
    decay = optim["weight_decay"]
    if optim["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=optim["momentum"], nesterov=optim["nesterov"], weight_decay=decay)
    if optim["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay)
    raise RecipeError(f"optim.optimizer must be sgd or adamw, not {optim['optimizer']!r}")


def schedule(optim: Mapping[str, Any], steps_per_epoch: int) -> Callable[[int], float]:
    """step -> factor of the base learning rates."""
    total = optim["epochs"] * steps_per_epoch
    if optim["schedule"] == "onecycle":  # linear up over `warmup` of the run, linear down to nearly nothing
        up = max(1, round(total * optim["warmup"]))
        return lambda step: min((step + 1) / up, max(0.002, (total - step) / max(1, total - up)))
    if optim["schedule"] == "multistep":
        marks = [m * steps_per_epoch for m in optim["milestones"]]
        return lambda step: float(0.1 ** sum(step >= m for m in marks))
    if optim["schedule"] == "constant":
        return lambda step: 1.0
    raise RecipeError(f"optim.schedule must be onecycle, multistep or constant, not {optim['schedule']!r}")


@torch.no_grad()
def validate(
    net: nn.Module, split: Split, steps: int, runtime: Runtime, batch: int = 250, ranks: Ranks = SOLO
) -> dict[str, float]:
    """Clean accuracy, PGD accuracy (T2, PGD_trades with `steps`), W-Robust (Eq. 25) and AUROC, in percent but the last.

    With `steps` 0 nothing is attacked and W-Robust is left out. Each process judges some of the batches.
    """
    was_training = net.training
    net.eval()
    right, right_adv = 0, 0
    scores: dict[str, list[Tensor]] = {"nat": [], "adv": []}

    def judge(x: Tensor, kind: str) -> Tensor:
        if isinstance(net, AWNet):
            signals = net.detect(x)
            scores[kind].append(signals.p_type[:, ADVERSARIAL].cpu())
            return net.classify(x, signals).argmax(1)
        return net(x).argmax(1)

    for x, y in shared_batches(split, batch, runtime, ranks):
        with runtime.autocast():
            right += int((judge(x, "nat") == y).sum())
            if steps:
                x_adv = pgd_trades(net, x, y, Budget(steps=steps))
                right_adv += int((judge(x_adv, "adv") == y).sum())
    net.train(was_training)
    parts = ranks.gather((right, right_adv, scores["nat"], scores["adv"]))
    right, right_adv = sum(part[0] for part in parts), sum(part[1] for part in parts)
    scores = {"nat": [s for part in parts for s in part[2]], "adv": [s for part in parts for s in part[3]]}
    clean = 100 * right / len(split)
    if not steps:
        return {"clean": clean}
    adv = 100 * right_adv / len(split)
    figures = {"clean": clean, "pgd": adv, "w_robust": (clean + adv) / 2}
    if scores["adv"]:
        figures["auroc"] = auroc(torch.cat(scores["nat"]), torch.cat(scores["adv"]))
    return figures


def shared_batches(split: Split, size: int, runtime: Runtime, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `split` that this process judges; random starts are those of the batch's number, in every run."""
    for i, (x, y) in enumerate(split.batches(size)):
        if i % ranks.size == ranks.rank:
            torch.manual_seed(i)
            yield x.to(runtime.device), y.to(runtime.device)


def detector_figures(net: AWNet, split: Split, runtime: Runtime, ranks: Ranks = SOLO) -> dict[str, float]:
    """What stage A is selected by: AUROC on PGD-10 examples made against the trunk, rounded to 8 bits."""
    net.eval()
    nat, adv = [], []
    for x, y in shared_batches(split, 250, runtime, ranks):
        with runtime.autocast():
            signals = net.detect(x).detach()
            budget = Budget(8 / 255, 2 / 255, 10)
            x_adv = pgd_trades(lambda z, s=signals: net.classify(z, s, "nat"), x, y, budget)  # type: ignore[misc]
            with torch.no_grad():
                nat.append(signals.p_type[:, ADVERSARIAL].cpu())
                adv.append(net.detect((x_adv * 255).round() / 255).p_type[:, ADVERSARIAL].cpu())
    parts = ranks.gather((nat, adv))
    return {"auroc": auroc(torch.cat([s for p in parts for s in p[0]]), torch.cat([s for p in parts for s in p[1]]))}


def set_exits(net: StaticNet, split: Split, runtime: Runtime) -> None:
    """Entropy thresholds of a multi-exit network, on validation images; they are part of its checkpoint."""
    was_training = net.training
    net.eval()
    for x, _ in split.batches(len(split)):
        net.set_exits(x.to(runtime.device))
    net.train(was_training)


@torch.no_grad()
def set_type_temperature(net: AWNet, split: Split, spread: float = 8.0) -> None:
    """Fix the type head's temperature: 99 % of its logit margins on clean images then lie within +-`spread`.

    Scores then stay well inside what float32 and six printed digits can tell apart (1/(1+e^8) is 3e-4).
    """
    margins = []
    for x, _ in split.batches(500):
        logits = net.detect(x.to(net.type_head.weight.device)).type_logits
        margins.append((logits[:, 0] - logits[:, 1]).abs())
    reach = torch.cat(margins).quantile(0.99).item()
    net.type_head.temperature.mul_(max(1.0, reach / spread))


def finish(
    net: nn.Module,
    images: ImageSet,
    recipe: Mapping[str, Any],
    name: str,
    metrics: Mapping[str, Any],
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The document of best.pt: weights rounded to float16, thresholds measured on exactly those."""
    document = checkpoint.pack(
        net,
        labels=images.labels,
        recipe={"name": name, **recipe},
        metrics=metrics,
        provenance={"commit": commit(), "report": f"training/reports/{name.replace('/', '-')}.json"},
        half=True,
    )
    if isinstance(net, AWNet):
        rounded = checkpoint.BUILDERS["awnet"](document["config"]).eval()
        rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in document["state"].items()})
        rounded.to(device or torch.device("cpu"), memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 as the server has it, on a GPU too
            document["calibration"] = asdict(calibrate(rounded, images.validation.images.split(500)))
    return document


def commit() -> str:
    """The repository's commit, or 'unknown' outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


@dataclass
class Progress:
    """How far a run is: in last.pt, so that it goes on from any step."""

    epoch: int = 0  # epochs that are finished
    done: int = 0  # steps of the next one
    sums: dict[str, float] = field(default_factory=dict)  # of the losses of those steps
    seconds: float = 0.0  # that those steps took
    history: list[dict[str, Any]] = field(default_factory=list)
    best_figure: float = float("-inf")


def train(
    recipe: Mapping[str, Mapping[str, Any]],
    images: ImageSet,
    out: Path,
    *,
    name: str = "recipe",
    resume: bool = False,
    device: str | torch.device = "cpu",
    stop_after_minutes: float | None = None,
    ranks: Ranks = SOLO,
) -> dict[str, float]:
    """Run (or go on with) a training; returns the best validation figures. See the module's docstring for the files.

    Everything random in it follows from (seed, epoch, step, image), so that a run that is stopped anywhere and goes
    on ends, on a CPU, with the very bits of one that was not.
    """
    optim, seed, began = recipe["optim"], recipe["data"]["seed"], time.monotonic()
    last, best = out / "last.pt", out / "best.pt"
    if last.exists() and not resume:
        raise FileExistsError(f"{out} holds a run already: go on with --resume, or name another --out")
    runtime = Runtime(torch.device(device), recipe["runtime"]["bf16"])
    if recipe["runtime"]["threads"]:
        torch.set_num_threads(recipe["runtime"]["threads"])
    if runtime.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change; the fastest algorithm is found once
    batch_size, accumulate = optim["batch_size"], optim["accumulate"]
    if accumulate < 1 or batch_size % (accumulate * ranks.size):
        raise RecipeError(
            f"optim.batch_size {batch_size} cannot be cut into equal parts for {ranks.size} processes times "
            f"optim.accumulate {accumulate}"
        )

    torch.manual_seed(seed)
    net = build_network(recipe["network"], len(images.labels))
    size = images.validation.images.shape[-1]
    if isinstance(net, AWNet) and net.config.image_size != size:
        raise RecipeError(f"network.image_size is {net.config.image_size}, and these images have {size} pixels a side")
    initialise(net, recipe["init"], out.parent)
    for module in recipe["network"]["freeze"]:
        net.get_submodule(module).requires_grad_(False)
    if recipe["runtime"]["sync_batch_norm"] and ranks.size > 1:
        if runtime.device.type != "cuda":
            raise RecipeError("runtime.sync_batch_norm needs GPUs: torch has no synchronised batch norm on a CPU")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net.to(runtime.device, memory_format=torch.channels_last)
    objective = build_objective(recipe, out.parent, runtime.device)
    optimizer = build_optimizer(parameter_groups(net, optim), optim)
    averaged = (
        AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(optim["ema"]), use_buffers=True) if optim["ema"] else None
    )
    train_split = images.train.head(recipe["data"]["train_images"] or None)  # 0: all
    if recipe["runtime"]["data_on_device"]:
        train_split = train_split.on(runtime.device)
    validation = images.validation.head(recipe["validate"]["images"])
    steps_per_epoch = len(train_split) // batch_size
    total_steps = optim["epochs"] * steps_per_epoch
    factor = schedule(optim, steps_per_epoch)
    base_lrs = [group["lr"] for group in optimizer.param_groups]

    lock = locked(out) if ranks.first else None
    at = Progress()
    if resume and last.exists():
        state = checkpoint.read(last)["run"]
        net.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        objective.load_state_dict(state["objective"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])
        at = Progress(**{f.name: state[f.name] for f in fields(Progress) if f.name in state})  # older ones lack some
    if recipe["runtime"]["compile"]:
        compile_network(net)
    for held in filter(None, (net, averaged)):
        ranks.same(held)

    def save() -> None:
        if ranks.first:
            run = {
                "network": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "objective": objective.state_dict(),
                "averaged": None if averaged is None else averaged.state_dict(),
                **asdict(at),
            }
            checkpoint.save(last, {"format": checkpoint.FORMAT, "kind": "run", "run": run})

    def say(text: str) -> None:
        if ranks.first:
            tqdm.write(text)

    step = at.epoch * steps_per_epoch + at.done
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step) if ranks.first else None
    saved, stop = time.monotonic(), False
    every = 60 * recipe["runtime"]["checkpoint_minutes"] or float("inf")
    while at.epoch < optim["epochs"] and not stop:
        net.train()
        started, earlier, first = time.monotonic(), at.seconds, at.done
        bar = tqdm(
            shuffled_batches(
                train_split,
                batch_size,
                seed,
                at.epoch,
                recipe["data"]["padding"],
                first=first,
                part=ranks.rank,
                parts=ranks.size,
                device=runtime.device,
            ),
            total=steps_per_epoch,
            initial=first,
            desc=f"{name} {at.epoch + 1}/{optim['epochs']}",
            unit="batch",
            mininterval=0.5 if sys.stderr.isatty() else 20,
            disable=not ranks.first,
        )
        for x, y, chance in bar:
            step = at.epoch * steps_per_epoch + at.done
            for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = base * factor(step)
            objective.follow(factor(step))
            awp = optim["awp"] if at.epoch >= optim["awp_from"] else 0.0
            loss = train_step(
                net, objective, optimizer, x, y, runtime, awp, chance=chance, parts=accumulate, ranks=ranks
            )
            if averaged is not None:
                averaged.update_parameters(net)
            for part, value in loss.parts.items():
                at.sums[part] = at.sums.get(part, 0.0) + value
            if writer and at.done % 20 == 0:
                took = (time.monotonic() - started) / (at.done + 1 - first)
                left = timedelta(seconds=round(took * (total_steps - step - 1)))
                shown = {k: f"{v:.3f}" for k, v in loss.parts.items()}
                bar.set_postfix({"img/s": f"{batch_size / took:.0f}", "run": f"{left} left", **shown})
                for part, value in loss.parts.items():
                    writer.add_scalar(f"train/{part}", value, step)
            at.done += 1
            at.seconds = earlier + time.monotonic() - started
            if at.done < steps_per_epoch:
                now = time.monotonic()
                stop = stop_after_minutes is not None and now - began > 60 * stop_after_minutes
                due, stop = ranks.first_says(now - saved > every, stop)
                if due or stop:
                    save()
                    saved = time.monotonic()
                if stop:
                    break
        if stop:
            bar.close()
            break
        at.epoch += 1
        for held in filter(None, (net, averaged)):
            ranks.same(held)
        judged = net if averaged is None else averaged.module
        figures: dict[str, float] = {}
        if at.epoch % recipe["validate"]["every"] == 0 or at.epoch == optim["epochs"]:
            if isinstance(objective, DetectorPretraining):
                assert isinstance(judged, AWNet)
                figures = detector_figures(judged, validation, runtime, ranks)
            else:
                if isinstance(judged, StaticNet) and judged.multi_exit:
                    set_exits(judged, validation.head(500), runtime)
                figures = validate(judged, validation, recipe["validate"]["attack_steps"], runtime, ranks=ranks)
        row = {
            "epoch": at.epoch,
            "train_seconds": round(at.seconds, 1),
            "images_per_second": round(steps_per_epoch * batch_size / max(at.seconds, 1e-9), 1),
            **{k: round(v / max(1, steps_per_epoch), 4) for k, v in at.sums.items()},
            **{f"validation_{k}": round(v, 4) for k, v in figures.items()},
        }
        at.history.append(row)
        say(json.dumps(row))
        figure = figures.get("w_robust", figures.get("clean", figures.get("auroc")))
        if figure is not None and figure > at.best_figure:
            at.best_figure = figure
            if isinstance(objective, DetectorPretraining):
                assert isinstance(judged, AWNet)
                set_type_temperature(judged.eval(), validation)
                ranks.same(judged)
            if ranks.first:
                metrics = {"validation": figures, "epoch": at.epoch, "history": at.history}
                checkpoint.save(best, finish(judged, images, recipe, name, metrics, runtime.device))
        at.done, at.sums, at.seconds = 0, {}, 0.0
        save()
        saved = time.monotonic()
        if writer:
            for key, value in figures.items():
                writer.add_scalar(f"validation/{key}", value, at.epoch * steps_per_epoch)
            write_json(out / "history.json", {"name": name, "recipe": dict(recipe), "epochs": at.history})
        (stop,) = ranks.first_says(stop_after_minutes is not None and saved - began > 60 * stop_after_minutes)
    if at.epoch < optim["epochs"]:
        say(f"stopped in epoch {at.epoch + 1} after {at.done} of its {steps_per_epoch} steps; go on with --resume")
    if writer:
        writer.close()
    if lock:
        lock.close()
    return {"best": at.best_figure, **(at.history[-1] if at.history else {})}


def locked(out: Path) -> IO[str]:
    """The folder, made where it is missing, for this process alone as long as the file that comes back is open.

    `torchrun` killed with -9 leaves its processes running: they and a resumed run must not write into each other's.

    Raises:
        FileExistsError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise FileExistsError(f"another process is training in {out}: wait for it, or end it") from None
    return lock


def compile_network(net: nn.Module) -> None:
    """`torch.compile` for whatever a step calls: attacks and losses go past `forward`, which alone `net.compile` sees.

    Needs a C++ compiler on a CPU. The first steps take minutes.
    """
    torch._dynamo.config.recompile_limit = 64  # both modes, all branches, with and without gradients: more than 8
    calls = ("detect", "classify") if isinstance(net, AWNet) else ("forward", "exits")
    for call in calls:
        if hasattr(net, call):
            setattr(net, call, torch.compile(getattr(net, call)))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Atomically, indented."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="a TOML file of training/recipes")
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="where the recipe's data set is (or is downloaded to: the CIFARs)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of this run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out (or start it)")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda, cuda:1, ...; under torchrun, cuda is one GPU a process"
    )
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override the recipe")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="checkpoint and stop after this")
    parser.add_argument(
        "--checkpoint-every", type=float, metavar="MINUTES", help="within an epoch too (runtime.checkpoint_minutes)"
    )
    args = parser.parse_args(argv)
    try:
        recipe = read_recipe(args.recipe, args.set)
        if args.checkpoint_every is not None:
            recipe["runtime"]["checkpoint_minutes"] = args.checkpoint_every
        with joined(args.device) as (ranks, device):
            if not ranks.first:
                ranks.wait()  # the first may have to download them
            images = load_images(recipe["data"]["set"], args.data_dir)
            if ranks.first:
                ranks.wait()
            result = train(
                recipe,
                images,
                args.out,
                name="/".join(args.recipe.with_suffix("").parts[-2:]),
                resume=args.resume,
                device=device,
                stop_after_minutes=args.stop_after,
                ranks=ranks,
            )
    except (RecipeError, checkpoint.CheckpointError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks.first:
        print(json.dumps({key: value for key, value in result.items() if math.isfinite(value)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
