"""One run of a recipe: network, EMA, optimiser, objective and progress, saved to and restored from last.pt.

A `Run` takes steps; when to save, what to measure and what to log is decided in `training.train`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..core.files import lock
from ..core.rng import KeyedRng
from ..data.batches import shuffled_batches
from ..data.images import ImageSet
from ..networks import checkpoint
from ..networks.network import Network
from ..renames import CHECKPOINT_KEYS
from .build import build_objective, build_optimizer, parameter_groups, schedule, starting_network
from .captured import CapturedStep, check_capturable
from .distributed import SINGLE_PROCESS, World
from .recipe import RecipeError
from .step import Losses, Runtime, train_step

DECISIVE = ("network", "init", "objective", "attack", "optim", "data")  # tables that a run keeps when it goes on
SHOWN = 20  # a step in so many is logged, and its losses read where steps are captured


@dataclass
class Progress:
    """How far a run is; part of last.pt, so that a run resumes at any step."""

    epoch: int = 0  # epochs that are finished
    steps_done: int = 0  # steps of the next one
    loss_sums: dict[str, float] = field(default_factory=dict)  # of the losses of those steps
    seconds: float = 0.0  # that those steps took
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = float("-inf")  # the highest selection score so far

    def add(self, losses: Losses) -> None:
        """The losses of one more step."""
        for part, value in losses.terms.items():
            self.loss_sums[part] = self.loss_sums.get(part, 0.0) + value


class Run:
    """A recipe at work on the images of `images.train`, from the folder `out`, in one process of `world`.

    Everything random in it follows from (seed, epoch, step, image). Making one writes nothing.

    Raises:
        RecipeError: what the recipe asks for does not exist, or not here.
    """

    def __init__(
        self,
        recipe: Mapping[str, Mapping[str, Any]],
        images: ImageSet,
        out: Path,
        runtime: Runtime,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.last, self.runtime, self.world = recipe, out / "last.pt", runtime, world
        optim, options = recipe["optim"], recipe["runtime"]
        self.batch_size: int = optim["batch_size"]
        self.microbatches: int = optim["microbatches"]
        if self.microbatches < 1 or self.batch_size % (self.microbatches * world.size):
            raise RecipeError(
                f"optim.batch_size {self.batch_size} cannot be cut equally for {world.size} processes times "
                f"optim.microbatches {self.microbatches}"
            )
        torch.manual_seed(recipe["data"]["seed"])
        net = starting_network(recipe, out.parent, len(images.labels), images.validation.images.shape[-1])
        if options["sync_batch_norm"] and world.size > 1:
            if runtime.device.type != "cuda":
                raise RecipeError("runtime.sync_batch_norm needs GPUs: torch has no synchronised batch norm on a CPU")
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        self.net = net.to(runtime.device).to(memory_format=torch.channels_last)
        self.objective = build_objective(recipe, out.parent, runtime.device)
        self.captured: CapturedStep | None = None
        if options["cuda_graphs"]:
            check_capturable(recipe, self.net, self.objective, runtime.device)
        self.fused = True if options["cuda_graphs"] else None
        self.optimizer = build_optimizer(parameter_groups(self.net, optim), optim, self.fused)
        self.ema = (
            AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(optim["ema"]), use_buffers=True)
            if optim["ema"]
            else None
        )
        split = images.train.head(recipe["data"]["train_images"] or None)  # 0: all
        self.split = split.on(runtime.device) if options["data_on_device"] else split
        self.steps_per_epoch: int = len(self.split) // self.batch_size
        if not self.steps_per_epoch:
            raise RecipeError(
                f"optim.batch_size {self.batch_size} is more than the {len(self.split)} images to train on "
                f"(data.train_images {recipe['data']['train_images']}): an epoch has no step"
            )
        self.factor = schedule(optim, self.steps_per_epoch)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.progress = Progress()

    @property
    def steps(self) -> int:
        """How many steps have been taken since the run began."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.steps_done

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left."""
        return bool(self.progress.epoch >= self.recipe["optim"]["epochs"])

    @property
    def ema_network(self) -> Network:
        """The network that is measured and published; without `optim.ema` the trained one itself."""
        if self.ema is None:
            return self.net
        averaged = self.ema.module
        assert isinstance(averaged, Network)
        return averaged

    def save(self) -> None:
        """Write last.pt; only the first process does."""
        self.read_losses()
        if self.world.first:
            run = {
                "network": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "objective": self.objective.state_dict(),
                "ema_network": None if self.ema is None else self.ema.state_dict(),
                "bf16": self.runtime.bf16,
                "recipe": {table: dict(self.recipe[table]) for table in DECISIVE},
                **asdict(self.progress),
            }
            checkpoint.save(self.last, {"format": checkpoint.FORMAT, "kind": "run", "run": run})

    def load(self) -> bool:
        """Restore last.pt, also an older one; returns whether the run was in bfloat16.

        Raises:
            FileNotFoundError, checkpoint.CheckpointError: as `checkpoint.read`, or it is no run; RecipeError: a run of
                another recipe.
        """
        document = checkpoint.read(self.last)
        if document["kind"] != "run":
            raise checkpoint.CheckpointError(f"{self.last} is a network and no run to resume: name another --out")
        stored = document["run"]
        for table, values in stored.get("recipe", {}).items():  # older ones do not say
            for key in sorted((values.keys() | self.recipe[table].keys()) - {"epochs", "microbatches"}):
                was, now = values.get(key), self.recipe[table].get(key)
                if was != now:
                    raise RecipeError(
                        f"{self.last.parent} holds a run of another recipe, with {table}.{key} {was!r} and not "
                        f"{now!r}: go on with that, or name another --out"
                    )
        state = {CHECKPOINT_KEYS.get(key, key): value for key, value in stored.items()}
        self.net.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # what fits this machine, not the one that saved it
            group["fused"] = self.fused
        self.objective.load_state_dict(state["objective"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema_network"])
        known = {f.name for f in fields(Progress)}  # last.pt of older versions lacks some
        self.progress = Progress(**{k: v for k, v in state.items() if k in known})
        measured = [row for row in self.progress.history if "validation_w_robust" in row]
        if measured and "validation_pgd" in measured[-1]:  # by PGD's last iterate, as epochs were compared once
            self.progress.best_score = float("-inf")  # no epoch reaches that under the worst case: choose anew
        return bool(state.get("bf16", self.recipe["runtime"]["bf16"]))

    def compile(self) -> None:
        """`torch.compile` each method that a step calls: `net.compile` would compile `forward` alone.

        Needs a C++ compiler on a CPU. The first steps take minutes.
        """
        torch._dynamo.config.recompile_limit = 64  # both modes, all branches, with and without gradients: more than 8
        for call in self.net.calls:
            setattr(self.net, call, torch.compile(getattr(self.net, call)))

    def synchronise(self) -> None:
        """Copy rank 0's network and EMA to every process; RuntimeError where they differ by more than rounding."""
        for held in filter(None, (self.net, self.ema)):
            self.world.synchronise(held)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, KeyedRng]]:
        """What is left of this epoch's batches: this process's images x, their labels y, the step's random numbers."""
        return shuffled_batches(
            self.split,
            self.batch_size,
            self.recipe["data"]["seed"],
            self.progress.epoch,
            self.recipe["data"]["padding"],
            first=self.progress.steps_done,
            rank=self.world.rank,
            world_size=self.world.size,
            device=self.runtime.device,
        )

    def step(self, x: Tensor, y: Tensor, rng: KeyedRng) -> Losses | None:
        """One update with what `batches` gave, at this step's learning rates; its losses join the epoch's sums.

        Returns them, or None where they are still on the GPU: of captured steps, each `SHOWN`th is read.
        """
        optim, factor = self.recipe["optim"], self.factor(self.steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        self.objective.set_lr_factor(factor)
        if self.recipe["runtime"]["cuda_graphs"]:
            if self.captured is None:
                parts = self.net, self.objective, self.optimizer, self.runtime
                gpu = self.runtime.device.type == "cuda"
                self.captured = CapturedStep(*parts, x, y, rng, ema=self.ema, world=self.world, capture=gpu)
            self.captured.step(x, y, rng)
            self.progress.steps_done += 1
            return self.read_losses() if self.shown else None
        losses = train_step(
            self.net,
            self.objective,
            self.optimizer,
            x,
            y,
            self.runtime,
            awp=optim["awp"] if self.progress.epoch >= optim["awp_from"] else 0.0,
            rng=rng,
            microbatches=self.microbatches,
            world=self.world,
        )
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        self.progress.add(losses)
        self.progress.steps_done += 1
        return losses

    @property
    def shown(self) -> bool:
        """Whether the losses of the step just taken are one of every `SHOWN` to show."""
        return (self.progress.steps_done - 1) % SHOWN == 0

    def read_losses(self) -> Losses | None:
        """Add what captured steps have left on the GPU to the epoch's sums; returns the last step's losses, if any.

        Raises:
            FloatingPointError: a loss is not finite; last.pt is of before.
        """
        found = self.captured.losses() if self.captured is not None else []
        for losses in found:
            self.progress.add(losses)
        return found[-1] if found else None

    def end_epoch(self) -> dict[str, Any]:
        """The finished epoch's row of the history, losses as means over its steps; progress moves to the next epoch."""
        self.read_losses()
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1,
            "bf16": self.runtime.bf16,
            "train_seconds": round(progress.seconds, 1),
            "images_per_second": round(self.steps_per_epoch * self.batch_size / max(progress.seconds, 1e-9), 1),
            **{k: round(v / max(1, self.steps_per_epoch), 4) for k, v in progress.loss_sums.items()},
        }
        progress.epoch, progress.steps_done, progress.loss_sums, progress.seconds = progress.epoch + 1, 0, {}, 0.0
        self.synchronise()
        return row


def locked(out: Path) -> IO[str]:
    """Lock the folder `out`, made where it is missing, for this process until the returned file is closed.

    `torchrun` killed with -9 leaves its processes running: they and a resumed run must not write into each other's.

    Raises:
        FileExistsError: another process holds it, or it is a file.
        OSError: it cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out {out} is a file, and a run is a folder")
    try:
        held = lock(out / "lock")
    except OSError as error:
        raise OSError(f"--out {out} cannot be made or written: {error.strerror}") from error
    if held is None:
        raise FileExistsError(f"another process is training in {out}: wait for it, or end it")
    for written in ("last.pt", "best.pt"):
        for partial in out.glob(f"{written}.*.partial"):  # of a process that was killed while it wrote
            partial.unlink()
    return held
