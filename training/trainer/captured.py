"""A training step without a word between host and GPU: its parts are captured once as CUDA graphs and replayed.

A step of `step.train_step` starts thousands of small kernels, each from Python, and waits for its losses: a fast GPU
idles. Here batch, random numbers, teachers' logits, adversarial images, gradients and averages live in tensors that
stay where they are. `prepare` (the inner attack and the teachers), `gradients` (loss and backward) and `average` (EMA)
are functions of those tensors alone, so each is captured at its first call and replayed from then on. What is between
them is a handful of kernels: the batch copied in, gradients averaged over processes, the fused optimiser. Losses stay
on the device until they are asked for.

Nothing here but `Graphed` knows of CUDA: uncaptured, the same functions run on a CPU, where tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..core.rng import KeyedRng
from ..networks.network import Network
from .distributed import SINGLE_PROCESS, World
from .objectives import Objective
from .recipe import RecipeError
from .step import Losses, Runtime, Statistics, numbers

T = TypeVar("T")
WARM = 3  # calls before a capture, as torch's documentation has it: libraries choose algorithms, allocators grow


@dataclass(frozen=True)
class StaticRng(KeyedRng):
    """The random numbers of the step at hand, in tensors that stay where they are.

    What images draw follows from `keys` on the device. What a whole step shares is drawn on the host as in any step and
    written into a tensor, so that a replay finds this step's; only `choice` can be, numbers that steer Python cannot.

    Attributes:
        source: one item, the random numbers of the step at hand.
        chosen: what has been drawn by `choice` before, by purpose and values: it is drawn in each step from then on.
    """

    source: list[KeyedRng] = field(default_factory=list)
    chosen: dict[tuple[str, tuple[float, ...]], Tensor] = field(default_factory=dict)

    @classmethod
    def like(cls, rng: KeyedRng) -> StaticRng:
        return cls(rng.keys.clone(), 0, rng.index.clone(), [rng])

    def hold(self, rng: KeyedRng) -> None:
        """From here on the numbers are those of `rng`."""
        self.source[:] = [rng]
        self.keys.copy_(rng.keys)
        self.index.copy_(rng.index)
        for (purpose, values), tensor in self.chosen.items():
            tensor.fill_(float(rng.choice(values, purpose)))

    def __getitem__(self, images: slice) -> StaticRng:
        return StaticRng(self.keys[images], 0, self.index[images], self.source, self.chosen)

    def choice(self, values: Sequence[float], purpose: str) -> Tensor:
        key = purpose, tuple(values)
        if key not in self.chosen:
            first = float(self.source[0].choice(values, purpose))
            self.chosen[key] = torch.full((), first, device=self.keys.device)
        return self.chosen[key]

    def number(self, low: float, high: float, purpose: str) -> float:
        raise RecipeError(f"runtime.cuda_graphs: {purpose!r} is drawn anew for each step, which a graph cannot follow")

    def integer(self, low: int, high: int, purpose: str) -> int:
        raise RecipeError(f"runtime.cuda_graphs: {purpose!r} is drawn anew for each step, which a graph cannot follow")


class Graphed(Generic[T]):
    """A function of tensors that stay where they are: captured at its first call, replayed from then on.

    Its result is in the same tensors every time. With `capture` off it is simply called.

    Args:
        moves: tensors that a call changes and reads: warming up leaves them as they were.
    """

    def __init__(self, call: Callable[[], T], moves: Sequence[Tensor], capture: bool) -> None:
        self.call, self.moves, self.capture = call, moves, capture
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: T

    def __call__(self) -> T:
        if not self.capture:
            return self.call()
        if self.graph is None:
            try:
                self.graph = self.captured()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RecipeError(
                    f"runtime.cuda_graphs: this training's step cannot be captured, set it to false ({error})"
                ) from error
        self.graph.replay()
        return self.result

    def captured(self) -> torch.cuda.CUDAGraph:
        before = [t.clone() for t in self.moves]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self.call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():
            for t, was in zip(self.moves, before, strict=True):
                t.copy_(was)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.call()
        return graph


class CapturedStep:
    """`step.train_step` and the EMA's update, over and over, for batches of the size of x [n,3,H,W], y [n].

    The loss is not looked at before the weights move: whoever reads `losses` stops a run whose loss is not finite.
    """

    def __init__(
        self,
        net: Network,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        x: Tensor,
        y: Tensor,
        rng: KeyedRng,
        *,
        ema: AveragedModel | None = None,
        world: World = SINGLE_PROCESS,
        capture: bool = True,
    ) -> None:
        self.net, self.objective, self.optimizer, self.runtime, self.world = net, objective, optimizer, runtime, world
        self.x, self.y, self.rng = x.clone(memory_format=torch.channels_last), y.clone(), StaticRng.like(rng)
        objective.whole_batch = world.size == 1
        self.names: list[str] = []
        self.unread: list[Tensor] = []
        self.prepare = Graphed(self._prepare, [], capture)
        self.gradients = Graphed(self._gradients, [*net.buffers(), *objective.moving(runtime.device)], capture)
        self.ema = ema
        self.averages = bool(ema is not None and ema.n_averaged > 0)  # the first average is a copy
        self.average = Graphed(self._average, [] if ema is None else list(ema.state_dict().values()), capture)

    def step(self, x: Tensor, y: Tensor, rng: KeyedRng) -> None:
        """One update of the weights and their averages; its losses join those that have not been read."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.rng.hold(rng)
        self.made = self.prepare()
        statistics = None if self.objective.whole_batch else Statistics(self.net, 1)
        losses = self.gradients().clone()  # the next replay writes over them
        if statistics is not None:
            with torch.no_grad():
                statistics.end_microbatch()
                self.world.mean_(
                    [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
                )
                self.world.mean_([losses])
                statistics.apply(self.world)
            self.objective.end_step(dict(zip(self.names, losses[1:], strict=True)))
        self.optimizer.step()
        if self.ema is not None:
            if self.averages:
                self.average()
            else:
                self.ema.update_parameters(self.net)
                self.averages = True
        self.unread.append(losses)

    def losses(self) -> list[Losses]:
        """Those of all steps since the last call, in order: one wait.

        Raises:
            FloatingPointError: one is not finite; the weights have moved since.
        """
        rows = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        found = [Losses(total, dict(zip(self.names, terms, strict=True))) for total, *terms in rows]
        for i, one in enumerate(found):
            if not math.isfinite(one.total):
                raise FloatingPointError(
                    f"the loss was {one.total} ({one.terms}) {len(found) - 1 - i} steps ago, and the weights have "
                    "moved since; lower optim.lr or switch bf16 off, and go on from last.pt"
                )
        return found

    def _prepare(self) -> Any:
        with self.runtime.autocast(cache=False):
            return self.objective.prepare(self.net, self.x, self.y, self.rng)

    def _gradients(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)  # so that the gradients are tensors of the graph
        with self.runtime.autocast(cache=False):
            loss = self.objective.loss(self.net, self.made)
        loss.total.backward()
        self.names = list(loss.terms)
        return numbers(loss)

    @torch.no_grad()
    def _average(self) -> None:
        """`AveragedModel.update_parameters`, which asks the device on the way whether it is the first time."""
        assert self.ema is not None and self.ema.multi_avg_fn is not None
        pairs = [(mine, its.detach()) for mine, its in zip(tensors(self.ema.module), tensors(self.net), strict=True)]
        for dtype in dict.fromkeys(mine.dtype for mine, _ in pairs):
            mine, its = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
            self.ema.multi_avg_fn(list(mine), list(its), self.ema.n_averaged)
        self.ema.n_averaged += 1


def tensors(net: nn.Module) -> list[Tensor]:
    """What an EMA averages."""
    return [*(p.detach() for p in net.parameters()), *net.buffers()]


def check_capturable(
    recipe: Mapping[str, Mapping[str, Any]], net: nn.Module, objective: Objective, device: torch.device
) -> None:
    """RecipeError for a training whose step cannot be captured, with the key that is in the way."""
    optim, runtime = recipe["optim"], recipe["runtime"]
    in_the_way = {
        objective.on_host: bool(objective.on_host),
        "optim.awp": optim["awp"] > 0,
        "optim.microbatches": optim["microbatches"] > 1,
        "runtime.compile": runtime["compile"],
        "runtime.sync_batch_norm": runtime["sync_batch_norm"],
        "a network with dropout": any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules()),
    }
    for what, found in in_the_way.items():
        if found:
            raise RecipeError(f"runtime.cuda_graphs does not go with {what}; set it to false")
    if device.type != "cuda":
        raise RecipeError(f"runtime.cuda_graphs needs a GPU (--device cuda), not {device}; set it to false")
