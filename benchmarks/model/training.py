"""How many images a second does a training step take in? Ours against the published MTARD loop, in the same run.

Both train the same AW-Net (ResNet-18, extractor frozen) with the same two teachers, batch and inner maximisation
(PGD-10, cross-entropy with labels), all weights random: the time does not depend on them. A step is everything from
the data set to the updated weights: batch, augmentation, adversarial images, teachers, forward, backward, SGD.

    published   a transcription of the loop of github.com/zhaoshiji123/MTARD (mtard/mtard_resnet18_cifar10.py and
                mtard_loss.py): float32, tensors as NCHW, images cropped and flipped one by one as PIL pictures in the
                training process (`num_workers` 0), clean and adversarial images in forwards of their own. Two things
                differ from what is often assumed of it: its attack takes the gradient of the *image* only, and its
                teachers run under `no_grad`; so does the transcription. What AW-Net adds (a branch for each
                kind, L_type) is added here in the same style. On a GPU, cuDNN is deterministic, as the script sets it
    ours        `training.trainer.step.train_step` on `training.data.batches.shuffled_batches`: bfloat16 autocast,
                channels last, images cropped and flipped together, the detector once for both kinds of image

The other variants change one thing in one of the two, so that each difference has its own figure. All run in
interleaved rounds, one step each, the order turned round every time, so that a noisy moment hits them alike; figures
are medians over the rounds, ratios medians of the ratios within a round, with a bootstrap interval of 95 %.

On a machine that others use too, `--clock cpu` counts the processor's seconds of this process instead of the wall's:
with one thread the two are the same on an idle machine, and time spent waiting for a turn is left out. The JSON has
both.

The matmul ceiling is a large square product in the dtype of the variant, measured in the same rounds; a step's
floating-point operations are those of its convolutions and products as PyTorch counts them. Work that a variant does
and could leave out counts as its work, so a fraction compares variants only beside the images a second.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import flop_registry
from torchvision import transforms

from training.attacks.ascent import Budget
from training.core.hardware import DeviceError, device_of, multiplies_bfloat16
from training.core.rng import GLOBAL_RNG, KeyedRng, Rng
from training.data.batches import shuffled_batches
from training.data.images import Split
from training.data.sets import load_cifar10
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.options import DEVICES
from training.trainer.adversary import Adversary
from training.trainer.build import build_optimizer, parameter_groups
from training.trainer.captured import CapturedStep
from training.trainer.distillation import LossBalance, Mtard
from training.trainer.objectives import type_loss
from training.trainer.recipe import DEFAULTS
from training.trainer.step import Runtime, train_step

from ..harness.report import RESULTS, parser, processor, publish

CPU = torch.device("cpu")
GOALS = {"cpu": 2.0, "cuda": 5.0}  # ours over published
EPS, STEP = 8 / 255, 2 / 255
FOUR = {"adv_branch_share": 0.4, "detector_ignored_share": 0.25, "evading_share": 0.2}
OPTIM = {**DEFAULTS["optim"], "nesterov": False, "weight_decay": 2e-4}  # the paper's, in both

EXAMPLES = """examples:
  python -m benchmarks.model.training --data-dir data                    # widths 16 and 64, about an hour on one core
  python -m benchmarks.model.training --sizes 16x128 --rounds 3          # a quick look, on random images
  python -m benchmarks.model.training --variants published ours          # only the two
  python -m benchmarks.model.training --sizes 16x8 --steps 1 --no-write  # does it run at all?
  python -m benchmarks.model.training --threads 1 --clock cpu            # on a machine that others use too
  python -m benchmarks.model.training --device cuda --sizes 64x128 64x512 --data-dir data --append
"""


@dataclass(frozen=True)
class Variant:
    """One way to do the training step.

    Attributes:
        loop: 'published' or 'ours'.
        bf16: bfloat16 autocast, teachers included, where the device multiplies bfloat16 (`on`).
        channels_last: memory format of networks and images.
        weight_gradients: the attack's backward also goes to the weights (`loss.backward()`).
        pil: images are cropped and flipped as PIL pictures by torchvision's transforms.
        compiled: the network's `forward` through `torch.compile`; in `train_step` only the attack calls it.
        folded: the attack runs on `training.networks.folded`; else on the network's own methods.
        attackers: all four of `Adversary` share the batch, not the one of the deployed network alone.
        captured: its parts are replayed as CUDA graphs (`runtime.cuda_graphs`); on a CPU the same parts, called.
    """

    loop: str
    bf16: bool = False
    channels_last: bool = False
    weight_gradients: bool = False
    pil: bool = True
    compiled: bool = False
    folded: bool = False
    attackers: bool = False
    captured: bool = False

    def on(self, device: torch.device) -> Variant:
        """This variant as a training computes it on `device`: in float32 where bfloat16 would be slower."""
        return replace(self, bf16=self.bf16 and multiplies_bfloat16(device))


PUBLISHED = Variant("published")
OURS = Variant("ours", bf16=True, channels_last=True, pil=False, folded=True)
VARIANTS = {
    "published": PUBLISHED,
    "ours": OURS,
    "published, bf16": replace(PUBLISHED, bf16=True),
    "published, channels last": replace(PUBLISHED, channels_last=True),
    "published, tensor augmentation": replace(PUBLISHED, pil=False),
    "published, weight gradients in the attack": replace(PUBLISHED, weight_gradients=True),
    "ours, float32": replace(OURS, bf16=False),
    "ours, NCHW": replace(OURS, channels_last=False),
    "ours, PIL augmentation": replace(OURS, pil=True),
    "ours, plain attack": replace(OURS, folded=False),
    "ours, float32, plain attack": replace(OURS, bf16=False, folded=False),
    "ours, four attackers": replace(OURS, attackers=True),
    "ours, four attackers, plain attack": replace(OURS, attackers=True, folded=False),
    "ours, captured": replace(OURS, captured=True),
    "ours, compiled": replace(OURS, folded=False, compiled=True),
}


@dataclass(frozen=True)
class Size:
    """Width of the first stage and images a batch."""

    width: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """'16x128': width 16, 128 images a batch."""
        width, x, batch = text.partition("x")
        if not (x and width.isdigit() and batch.isdigit() and int(width) and int(batch) > 1):
            raise argparse.ArgumentTypeError(f"a size is WIDTHxBATCH, e.g. 16x128 (two images at least), not {text!r}")
        return cls(int(width), int(batch))


class Published:
    """The published loop's data set: a PIL picture an index."""

    def __init__(self, split: Split) -> None:
        self.pictures = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        size = split.images.shape[-1]
        self.transform = transforms.Compose(
            [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[i])), self.labels[i]


Batch = tuple[Tensor, Tensor, Rng]


def batches(split: Split, size: int, pil: bool, device: torch.device = CPU) -> Iterator[Batch]:
    """Augmented batches without end, by the published means or by ours: x float32 [size,3,H,W] in [0,1] and y [size] on
    `device`, and what else is random about these images."""
    if pil:
        data: Dataset[tuple[Tensor, int]] = Published(split)  # type: ignore[assignment]
        loader = DataLoader(data, batch_size=size, shuffle=True, num_workers=0, drop_last=True)
        while True:
            for x, y in loader:
                yield x.to(device), y.to(device), GLOBAL_RNG
    on_device = split.on(device)
    for epoch in itertools.count():
        yield from shuffled_batches(on_device, size, seed=0, epoch=epoch, device=device)


@dataclass
class Contestant:
    """A variant with a network, an optimiser and a stream of images of its own; `step()` is one update."""

    variant: Variant
    net: AWNet
    data: Iterator[Batch]
    update: Callable[[Tensor, Tensor, Rng], float]  # a batch -> the loss
    device: torch.device

    def step(self) -> float:
        """Next batch, one update; returns the loss."""
        x, y, rng = next(self.data)
        layout = torch.channels_last if self.variant.channels_last else torch.contiguous_format
        loss = self.update(x.contiguous(memory_format=layout), y, rng)
        finish(self.device)
        return loss


def build(variant: Variant, size: Size, split: Split, steps: int, device: torch.device) -> Contestant:
    """Everything that `variant` needs, the same random weights for all of one width."""
    torch.manual_seed(0)
    net = AWNet(AWNetConfig(width=size.width, image_size=split.images.shape[-1]))
    teachers = build_teachers(size.width)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    for network in (net, *teachers):
        network.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(parameter_groups(net, OPTIM), OPTIM, fused=True if variant.captured else None)
    data = batches(split, size.batch, variant.pil, device)
    net.train()
    runtime = Runtime(device, variant.bf16)
    if variant.compiled:
        net.compile()
    if variant.loop == "published":
        balancer = LossBalance()

        def update(x: Tensor, y: Tensor, rng: Rng) -> float:
            with runtime.autocast():
                return published_step(net, teachers, optimizer, balancer, x, y, steps, variant)

    else:
        shares = FOUR if variant.attackers else {}
        adversary = Adversary(Budget(EPS, STEP, steps), folded=variant.folded, **shares)
        objective = Mtard(adversary, *teachers, eta_decays=True)

        if variant.captured:
            return Contestant(variant, net, data, captured(net, objective, optimizer, runtime), device)

        def update(x: Tensor, y: Tensor, rng: Rng) -> float:
            return train_step(net, objective, optimizer, x, y, runtime, rng=rng).total

    return Contestant(variant, net, data, update, device)


def captured(
    net: AWNet, objective: Mtard, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> Callable[[Tensor, Tensor, Rng], float]:
    """An update that replays its parts; it waits for its loss, as a run does every twenty steps."""
    steps: list[CapturedStep] = []

    def update(x: Tensor, y: Tensor, rng: Rng) -> float:
        assert isinstance(rng, KeyedRng)
        if not steps:
            gpu = runtime.device.type == "cuda"
            steps.append(CapturedStep(net, objective, optimizer, runtime, x, y, rng, capture=gpu))
        steps[0].step(x, y, rng)
        return steps[0].losses()[-1].total

    return update


def build_teachers(width: int) -> tuple[nn.Module, nn.Module]:
    """(natural, robust): the paper's ResNet-56 and WRN-34-10, as much narrower as the student is."""
    share = width / 64
    natural = build_static(StaticConfig("resnet56", max(1, round(16 * share))))
    robust = build_static(StaticConfig("wrn34_10", max(1, round(160 * share))))
    return natural.eval().requires_grad_(False), robust.eval().requires_grad_(False)


def published_step(
    net: AWNet,
    teachers: tuple[nn.Module, nn.Module],
    optimizer: torch.optim.Optimizer,
    balancer: LossBalance,
    x: Tensor,
    y: Tensor,
    steps: int,
    variant: Variant,
) -> float:
    """One update as the published code does it (see the module's docstring); returns the loss."""
    optimizer.zero_grad()
    with torch.no_grad():
        target_nat = teachers[0](x)
    x_adv = published_attack(net, x, y, steps, variant.weight_gradients)
    net.train()
    optimizer.zero_grad()
    signals_adv = net.detect(x_adv)
    logits_adv = net.classify(x_adv, signals_adv, "adv")
    with torch.no_grad():
        target_adv = teachers[1](x_adv)
    signals_nat = net.detect(x)
    logits_nat = net.classify(x, signals_nat, "nat")
    adv, nat = published_divergence(logits_adv, target_adv), published_divergence(logits_nat, target_nat)
    kind = type_loss(torch.cat([signals_nat.type_logits, signals_adv.type_logits]), len(x))
    balancer.update(nat, adv)
    total = kind + balancer.w_adv * adv + balancer.w_nat * nat
    total.backward()
    optimizer.step()
    return total.item()


def published_attack(net: AWNet, x: Tensor, y: Tensor, steps: int, weight_gradients: bool) -> Tensor:
    """PGD on the batch's mean cross-entropy in evaluation mode, from x plus 0.001 times standard normal noise."""
    net.eval()
    x_adv = x.detach() + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(net(x_adv), y)
        if weight_gradients:
            loss.backward()
            assert x_adv.grad is not None
            gradient = x_adv.grad
        else:
            (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + STEP * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0.0, 1.0)
    return x_adv.detach()


def published_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits [N,K], the mean over images and classes, 1e-5 inside the logarithm."""
    target = F.softmax(teacher, dim=1)
    return (target * ((target + 1e-5).log() - F.log_softmax(student, dim=1))).mean()


def finish(device: torch.device) -> None:
    """Wait until the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def cudnn_of(variant: Variant) -> Iterator[None]:
    """The published script asks cuDNN for deterministic algorithms; ours leaves the choice to it."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = variant.loop == "published"
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


class Counter(TorchDispatchMode):
    """Adds up floating-point operations by PyTorch's own formulas.

    PyTorch's `FlopCounterMode` also attributes them to modules, by hooks that `torch.autograd.grad` refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def operations(contestant: Contestant) -> int:
    """Floating-point operations of one step (a multiply-add is two), of convolutions and matrix products."""
    assert not contestant.variant.compiled, "a compiled graph hides its operations from the counter"
    with Counter() as counter, cudnn_of(contestant.variant):
        contestant.step()
    return counter.total


class Ceiling:
    """A square matrix product in one dtype: a yardstick; a convolution library that suits the machine may beat it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.device = (8192 if device.type == "cuda" else 2048), device
        self.a, self.b = (torch.randn(self.n, self.n, device=device).to(dtype) for _ in range(2))

    def operations_per_second(self, clock: str) -> float:
        """The faster of two calls: other processes can only add to a time."""
        calls = [timed(lambda: torch.mm(self.a, self.b), self.device) for _ in range(2)]
        return 2 * self.n**3 / min(getattr(call, clock) for call in calls)


class Seconds(NamedTuple):
    """How long something took."""

    wall: float
    cpu: float  # of this process, all threads


def timed(call: Callable[[], object], device: torch.device) -> Seconds:
    """How long one call takes, its device's work included."""
    finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    finish(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def interval(ratios: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median of `ratios` (the rounds are drawn anew)."""
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[round(0.025 * (draws - 1))], medians[round(0.975 * (draws - 1))]


def compare(
    size: Size, names: Sequence[str], split: Split, steps: int, rounds: int, device: torch.device, clock: str
) -> dict[str, Any]:
    """One row a variant: images/s, ratio to the published loop, operations and their share of the ceiling."""
    racers = {name: build(VARIANTS[name].on(device), size, split, steps, device) for name in names}
    ceilings = {
        "bf16" if bf16 else "float32": Ceiling(torch.bfloat16 if bf16 else torch.float32, device)
        for bf16 in sorted({racer.variant.bf16 for racer in racers.values()})
    }
    flops: dict[str, int] = {}
    for name, racer in racers.items():  # a step that is not timed: it counts, compiles and warms up
        if racer.variant.captured:
            racer.step()
        elif racer.variant.compiled:
            began = time.perf_counter()
            racer.step()
            print(f"{name}: first step, compilation included, {time.perf_counter() - began:.0f} s", flush=True)
        else:
            flops[name] = operations(racer)
    flops |= {name: flops["ours"] for name in names if racers[name].variant.captured and "ours" in flops}
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in ceilings}
    for k in range(rounds):
        for name in list(names)[:: -1 if k % 2 else 1]:
            with cudnn_of(racers[name].variant):
                taken[name].append(timed(racers[name].step, device))
        for name, ceiling in ceilings.items():
            peaks[name].append(ceiling.operations_per_second(clock))
        print(
            f"width {size.width}, batch {size.batch}, round {k + 1}/{rounds}: "
            + "; ".join(f"{name} {size.batch / getattr(taken[name][-1], clock):.1f} img/s" for name in names),
            flush=True,
        )
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    times = {name: [getattr(one, clock) for one in all_] for name, all_ in taken.items()}
    rows = []
    for name in names:
        variant, median = racers[name].variant, statistics.median(times[name])
        ratios = [a / b for a, b in zip(times["published"], times[name], strict=True)]
        row: dict[str, Any] = {
            "variant": name,
            "images_per_second": round(size.batch / median, 2),
            "wall_seconds": [round(one.wall, 4) for one in taken[name]],
            "cpu_seconds": [round(one.cpu, 4) for one in taken[name]],
            "over_published": round(statistics.median(ratios), 3),
            "interval": [round(v, 3) for v in interval(ratios)],
        }
        if (plain := f"{name}, plain attack") in times:
            folded = [a / b for a, b in zip(times[plain], times[name], strict=True)]
            row["folded_over_plain"] = [round(v, 3) for v in (statistics.median(folded), *interval(folded))]
        if name in flops:
            row["operations_per_image"] = flops[name] // size.batch
            row["ceiling_fraction"] = round(flops[name] / median / peak["bf16" if variant.bf16 else "float32"], 4)
        rows.append(row)
    return {
        "width": size.width,
        "batch": size.batch,
        "ceiling_gigaflops": {name: round(value / 1e9, 1) for name, value in peak.items()},
        "variants": rows,
    }


def data_seconds(split: Split, batch: int, rounds: int, clock: str) -> dict[str, float]:
    """Median seconds that one batch takes, augmentation included, by PIL and by tensors."""
    streams = {name: batches(split, batch, name == "pil") for name in ("pil", "tensor")}
    times: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds + 1):
        for name, stream in streams.items():
            times[name].append(getattr(timed(lambda stream=stream: next(stream), torch.device("cpu")), clock))
    return {name: round(statistics.median(values[1:]), 5) for name, values in times.items()}


def random_images(count: int) -> Split:
    """Images of CIFAR-10's shape where there is no data set."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


def markdown(document: Any) -> str:
    """The results as tables, run after run."""
    lines = [
        "# Training speed against the published loop",
        "",
        "Images a second of one AW-Net step (ResNet-18, extractor frozen, two teachers), batch making included. "
        "Medians of interleaved rounds; ratios are taken within a round and have a bootstrap interval of 95 %. What is "
        "compared is said in `benchmarks/model/training.py`.",
    ]
    for run in document["runs"]:
        lines += ["", *_run_lines(run)]
    if not any(run["machine"]["device"] == "cuda" for run in document["runs"]):
        lines += ["", "Not run on a GPU: the goal of 5 times there is untested."]
    return "\n".join(lines) + "\n"


def _run_lines(run: Any) -> list[str]:
    machine = run["machine"]
    clock = "the wall's time" if run["clock"] == "wall" else "processor time of the process"
    lines = [
        f"`{run['command']}`, {run['date']}: {machine['name']}, {machine['threads']} thread(s), PyTorch "
        f"{machine['torch']}, {run['images']}, PGD-{run['steps']}, {run['rounds']} rounds, {clock}. "
        f"Goal here: ours at least {GOALS[machine['device']]:.0f} times the published loop."
    ]
    if not machine.get("bfloat16", True):  # results before this was asked are of CPUs that have it
        lines += ["", "This CPU has no instructions for bfloat16: every variant is in float32."]
    for result in run["results"]:
        peaks = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in result["ceiling_gigaflops"].items())
        data = result["data_seconds"]
        lines += [
            "",
            f"## Width {result['width']}, batch {result['batch']}, {machine['device']}",
            "",
            f"Matmul ceiling: {peaks}. One batch of images: {1e3 * data['pil']:.1f} ms by PIL, "
            f"{1e3 * data['tensor']:.1f} ms by tensors.",
            "",
            "| variant | images/s | over published | 95 % | over plain attack | GFLOP an image | of the ceiling |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["variants"]:
            low, high = row["interval"]
            flop = f"{row['operations_per_image'] / 1e9:.2f}" if "operations_per_image" in row else ""
            share = f"{100 * row['ceiling_fraction']:.0f} %" if "ceiling_fraction" in row else ""
            pair = "{:.2f} ({:.2f}-{:.2f})".format(*row["folded_over_plain"]) if "folded_over_plain" in row else ""
            lines.append(
                f"| {row['variant']} | {row['images_per_second']:.1f} | {row['over_published']:.2f} "
                f"| {low:.2f}-{high:.2f} | {pair} | {flop} | {share} |"
            )
    return lines


def device_name(device: torch.device) -> str:
    """What the figures were taken on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    command_line = parser("model.training", __doc__, EXAMPLES)
    sizes = [Size(16, 128), Size(64, 32)]
    command_line.add_argument(
        "--sizes", type=Size.parse, nargs="+", default=sizes, metavar="WIDTHxBATCH", help="(16x128 64x32)"
    )
    command_line.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS)
    )
    command_line.add_argument("--steps", type=int, default=10, help="of the attack (%(default)s)")
    command_line.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    command_line.add_argument("--device", default="cpu", help=DEVICES)
    command_line.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (%(default)s)"
    )
    command_line.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: see above (%(default)s)")
    command_line.add_argument("--data-dir", type=Path, help="where CIFAR-10 is; without it, random images")
    command_line.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="for training.json and training.md"
    )
    command_line.add_argument("--append", action="store_true", help="add this run to what is in --out")
    command_line.add_argument("--no-write", action="store_true", help="print only")
    options = command_line.parse_args(arguments)
    if min(options.steps, options.rounds, options.threads) < 1:
        command_line.error("--steps, --rounds and --threads are at least 1")
    if options.clock == "cpu" and (options.threads > 1 or options.device != "cpu"):
        command_line.error(
            "--clock cpu needs --threads 1 and --device cpu: elsewhere it is not the time that a step takes"
        )
    try:
        device = device_of(options.device)
    except DeviceError as error:
        command_line.error(str(error))
    names = list(dict.fromkeys(["published", *options.variants]))
    torch.set_num_threads(options.threads)
    split = load_cifar10(options.data_dir, download=False).train if options.data_dir else random_images(5_000)

    results = []
    for size in options.sizes:
        result = compare(size, names, split, options.steps, options.rounds, device, options.clock)
        results.append({**result, "data_seconds": data_seconds(split, size.batch, options.rounds, options.clock)})
    run = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.model.training", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "device": device.type,
            "name": device_name(device),
            "threads": options.threads,
            "torch": torch.__version__,
            "bfloat16": multiplies_bfloat16(device),
        },
        "images": "CIFAR-10" if options.data_dir else "random images",
        "clock": options.clock,
        "steps": options.steps,
        "rounds": options.rounds,
        "results": results,
    }
    path = options.out / "training.json"
    before = json.loads(path.read_text())["runs"] if options.append and path.exists() else []
    document = {"runs": [*before, run]}
    print("\n".join(_run_lines(run)))
    if not options.no_write:
        publish(options.out / "training", document, markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
