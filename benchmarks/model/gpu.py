"""Does a GPU do what the CPU's tests say, and is it filled? Three checks; status 1 where one fails.

    captured    captured steps (`runtime.cuda_graphs`) leave the weights, statistics and averages that plain steps
                leave, for an AW-Net with every attacker and for one with MTARD's balance
    speed       images a second of the captured step over the published loop, at width 64 and batch 256: ten times at
                least; with the share of the bfloat16 ceiling, a large matrix product measured in the same rounds
    robust      a static ResNet-18 of width 64 trained by PGD-3 from nothing, captured, through `training.train`: how
                long it takes, and its accuracy under AutoAttack on validation images, 40 % at least

Without a GPU there is nothing to check, and the status is 2. `--cpu` rehearses every path there: tiny networks, random
images, the same code uncaptured; only the first check can fail then.
"""

from __future__ import annotations

import copy
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.attacks.ascent import Budget
from training.attacks.autoattack import autoattack
from training.core.rng import KeyedRng
from training.data.images import ImageSet, to_pixels
from training.data.sets import load_cifar10
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.network import Network
from training.train import train
from training.trainer.adversary import Adversary
from training.trainer.captured import CapturedStep
from training.trainer.distillation import Mtard
from training.trainer.objectives import Objective, PgdAt
from training.trainer.recipe import read_recipe
from training.trainer.step import Runtime, train_step

from ..harness.report import RESULTS, parser, publish
from .training import Size, build_teachers, compare, device_name, random_images

SPEED_GOAL, ROBUST_GOAL = 10.0, 0.40
# Above the rounding of float32 over a step; a wrong tensor is wrong by the learning rate times a gradient.
SAME, SAME_PIXELS = 2e-5, 0.01
RECIPE = """about = "What `python -m benchmarks.model.gpu` trains."
[network]
kind = "static"
arch = "resnet18"
width = 64
[objective]
name = "pgd_at"
label_smoothing = 0.1
[attack]
steps = 3
step = 4.0
start = "uniform"
[optim]
epochs = 30
batch_size = 256
lr = 0.2
ema = 0.998
[validate]
images = 512
every = 30
[runtime]
bf16 = true
cuda_graphs = true
"""
EXAMPLES = """examples:
  python -m benchmarks.model.gpu --data-dir data               # on a GPU, about ten minutes
  python -m benchmarks.model.gpu --only captured speed         # without a training, on random images
  python -m benchmarks.model.gpu --cpu                         # a rehearsal, a minute
"""

Row = dict[str, Any]


def check_captured(device: torch.device, steps: int = 4) -> Row:
    """The largest difference that captured steps leave, of each objective, to plain ones: float32, attacks that reach
    nowhere (signs of gradients would amplify rounding); and the share of pixels on which real attacks differ. Batches,
    their random numbers and the radius of those who evade differ from step to step."""
    shares = {"adv_branch_share": 0.25, "detector_ignored_share": 0.5, "evading_share": 0.25}
    calm = Adversary(Budget(1e-5, 1e-5, 2), **shares)
    real = Adversary(Budget(steps=3), **shares)
    nat, adv = (teacher.to(device) for teacher in build_teachers(8))
    objectives: dict[str, Callable[[], Objective]] = {
        "every attacker": lambda: PgdAt(calm, nat_eps=1e-5, nat_batch_share=0.5, sign_noise_share=0.25),
        "two teachers": lambda: Mtard(calm, nat, adv),
    }
    differences, attacks = {}, {}
    for mixing in ("norms", "bounded"):
        torch.manual_seed(0)
        net = AWNet(AWNetConfig(width=8, beta=1.0, mixing=mixing, extractor_frozen=False))
        net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        for how, capture in {"captured": True, "called": False}.items():
            if not capture or device.type == "cuda":
                for name, make in objectives.items():
                    found = difference(net, make(), device, steps, capture)
                    differences[f"{name}, {mixing}, {how}"] = round(found, 8)
                attacks[f"{mixing}, {how}"] = round(other_pixels(net, PgdAt(real), device, steps, capture), 6)
    passed = max(differences.values()) <= SAME and max(attacks.values()) <= SAME_PIXELS
    row = {"check": "captured", "passed": passed, "steps": steps, "differences": differences, "bound": SAME}
    return {**row, "other_pixels": attacks, "bound_of_pixels": SAME_PIXELS}


def batch(step: int, device: torch.device) -> tuple[Tensor, Tensor, KeyedRng]:
    """Sixteen images, labels and random numbers, others in each step."""
    split = random_images(16 * (step + 1))
    index = torch.arange(16 * step, 16 * (step + 1), device=device)
    x, y = to_pixels(split.images[-16:]), split.labels[-16:]
    return x.to(device), y.to(device), KeyedRng.of(0, 0, step, index)


def difference(net: Network, objective: Objective, device: torch.device, steps: int, capture: bool) -> float:
    """Between `steps` of `train_step` and of `CapturedStep`, each from `net` and `objective` as they are: of weights,
    statistics, averages, the objective's state and losses. Each plain step starts where the captured one stands."""
    net, objective = copy.deepcopy(net), copy.deepcopy(objective)
    runtime, worst = Runtime(device, bf16=False), 0.0
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    held = CapturedStep(net, objective, sgd(net, 0.05), runtime, *batch(0, device), ema=ema, capture=capture)
    for i in range(steps):
        x, y, rng = batch(i, device)
        plain, plain_objective, plain_ema = copy.deepcopy(net), copy.deepcopy(objective), copy.deepcopy(ema)
        losses = train_step(plain, plain_objective, sgd(plain, 0.05), x, y, runtime, rng=rng)
        plain_ema.update_parameters(plain)
        held.step(x, y, rng)
        (found,) = held.losses()
        pairs = [(t, plain.state_dict()[k]) for k, t in net.state_dict().items()]
        pairs += [(t, plain_ema.state_dict()[k]) for k, t in ema.state_dict().items()]
        pairs += zip(objective.moving(device), plain_objective.moving(device), strict=True)
        worst = max([worst, *(float((a.double() - b.double()).abs().max()) for a, b in pairs)])
        worst = max([worst, *(abs(value - losses.terms[name]) for name, value in found.terms.items())])
    return worst


def other_pixels(net: Network, objective: Objective, device: torch.device, steps: int, capture: bool) -> float:
    """The share of the pixels on which the adversarial images of captured steps are not the eager ones, at most; the
    weights stand still, the statistics move."""
    net, runtime, worst = copy.deepcopy(net), Runtime(device, bf16=False), 0.0
    held = CapturedStep(net, objective, sgd(net, 0.0), runtime, *batch(0, device), capture=capture)
    for i in range(steps):
        x, y, rng = batch(i, device)
        expected = objective.prepare(net, x, y, rng).x_adv
        held.step(x, y, rng)
        worst = max(worst, float((held.made.x_adv != expected).float().mean()))
    return worst


def sgd(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The fused one, as runs of captured steps have it."""
    return torch.optim.SGD(net.parameters(), lr, fused=True)


def check_speed(device: torch.device, size: Size, images: ImageSet | None, rounds: int, steps: int) -> Row:
    """The captured step against the published loop, ours uncaptured beside them."""
    split = images.train if images is not None else random_images(max(2_000, 2 * size.batch))
    result = compare(size, ["published", "ours", "ours, captured"], split, steps, rounds, device, "wall")
    rows = {row["variant"]: row for row in result["variants"]}
    ours = rows["ours, captured"]
    return {
        "check": "speed",
        "passed": ours["over_published"] >= SPEED_GOAL,
        "goal": SPEED_GOAL,
        "attack_steps": steps,
    } | {
        "width": size.width,
        "batch": size.batch,
        "images_per_second": {name: row["images_per_second"] for name, row in rows.items()},
        "over_published": ours["over_published"],
        "interval": ours["interval"],
        "ceiling_gigaflops": result["ceiling_gigaflops"],
        "share_of_ceiling": ours.get("ceiling_fraction"),
    }


def check_robust(device: torch.device, images: ImageSet, judged: int, steps: int, settings: Sequence[str]) -> Row:
    """A training from nothing and AutoAttack on its result, with the time that each took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "robust.toml"
        path.write_text(RECIPE)
        recipe, began = read_recipe(path, settings), time.monotonic()
        train(recipe, images, Path(folder) / "run", device=device)
        trained = time.monotonic()
        net = checkpoint.load(Path(folder) / "run/best.pt", device).network.requires_grad_(False)
    part = images.validation.head(judged)
    x, y = to_pixels(part.images).to(device), part.labels.to(device)
    with torch.no_grad():
        clean = float((net(x).argmax(1) == y).float().mean())
        x_adv = autoattack(net, x, y, Budget(8 / 255, steps=steps))
        robust = float((net(x_adv).argmax(1) == y).float().mean())
    return {"check": "robust", "passed": robust >= ROBUST_GOAL, "goal": ROBUST_GOAL, "images": judged} | {
        "epochs": recipe["optim"]["epochs"],
        "train_seconds": round(trained - began, 1),
        "autoattack_seconds": round(time.monotonic() - trained, 1),
        "clean": round(clean, 4),
        "autoattack": round(robust, 4),
    }


def markdown(document: Any) -> str:
    """The checks as a page."""
    lines = [
        "# A GPU, filled",
        "",
        f"`{document['command']}`, {document['date']}: {document['device']}, PyTorch {document['torch']}. What is "
        "checked is said in `benchmarks/model/gpu.py`.",
        "",
        "| check | passed | figures |",
        "|---|---|---|",
    ]
    for row in document["checks"]:
        rest = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("check", "passed"))
        lines.append(f"| {row['check']} | {'yes' if row['passed'] else 'NO'} | {rest} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    command_line = parser("model.gpu", __doc__, EXAMPLES)
    command_line.add_argument("--data-dir", type=Path, help="where CIFAR-10 is; 'robust' needs it")
    command_line.add_argument("--device", default="cuda", help="cuda, cuda:1, ...")
    command_line.add_argument("--only", nargs="+", choices=("captured", "speed", "robust"), help="these checks alone")
    command_line.add_argument("--cpu", action="store_true", help="rehearse on a CPU")
    command_line.add_argument("--epochs", type=int, default=30, help="of 'robust' (%(default)s)")
    command_line.add_argument("--images", type=int, default=512, help="under AutoAttack (%(default)s)")
    command_line.add_argument(
        "--out", type=Path, default=RESULTS / "gpu", help="without suffix; a rehearsal writes nothing"
    )
    options = command_line.parse_args(arguments)
    checks = options.only or ["captured", "speed", "robust"]
    if not options.cpu and not torch.cuda.is_available():
        print("error: torch finds no GPU here; --cpu rehearses on the CPU", file=sys.stderr)
        return 2
    if not options.cpu and "robust" in checks and options.data_dir is None:
        print("error: 'robust' needs --data-dir; --only captured speed goes without", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.cpu else options.device)
    images: ImageSet | None = None
    if options.data_dir is not None:
        try:
            images = load_cifar10(options.data_dir, download=False)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # what is compared is float32
    rows = []
    for check in checks:
        if check == "captured":
            row = check_captured(device, steps=2 if options.cpu else 4)
        elif check == "speed":
            size, rounds = (Size(2, 4), 1) if options.cpu else (Size(64, 256), 5)
            row = check_speed(device, size, images, rounds, 1 if options.cpu else 10)
        else:
            settings, judged, steps = [f"optim.epochs={options.epochs}"], options.images, 100
            if options.cpu:
                images = ImageSet(random_images(16), random_images(8), random_images(8), [str(i) for i in range(10)])
                tiny = ("network.width=2", "optim.batch_size=8", "validate.images=8", "validate.attack_steps=1")
                settings, judged, steps = ["optim.epochs=1", "runtime.cuda_graphs=false", *tiny], 2, 1
            assert images is not None
            row = check_robust(device, images, judged, steps, settings)
        if options.cpu and check != "captured":
            row["passed"] = True  # a rehearsal has no goal
        rows.append(row)
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if not options.cpu:
        document = {
            "command": " ".join(
                ["python -m benchmarks.model.gpu", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "date": datetime.date.today().isoformat(),
            "device": device_name(device),
            "torch": torch.__version__,
            "checks": rows,
        }
        publish(options.out, document, markdown(document))
    failed = [row["check"] for row in rows if not row["passed"]]
    print(f"FAILED: {', '.join(failed)}" if failed else "rehearsed" if options.cpu else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
