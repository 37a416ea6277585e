"""What a training run promises: bit-for-bit resume, whole files, validation-chosen best.pt, clear refusals."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.train
import training.trainer.run
from examples import shapes
from tests.waiting import eventually
from training import evaluate
from training.core.rng import KeyedRng
from training.data.batches import crop_and_flip
from training.data.images import ImageSet, Split
from training.data.sets import load_cifar10
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.reproduction import sweep
from training.train import main, train
from training.trainer.distributed import World
from training.trainer.recipe import RecipeError, read_recipe
from training.trainer.step import Runtime
from training.trainer.validation import shared_batches

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "training" / "recipes"


def small_set(count: int = 64, size: int = 32, classes: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, classes, (n,), generator=generator))

    return ImageSet(split(count), split(16), split(16), [f"class {i}" for i in range(classes)])


def tiny_recipe(tmp_path: Path, text: str = "") -> dict[str, dict[str, object]]:
    path = tmp_path / "tiny.toml"
    path.write_text(
        "[network]\nwidth = 4\nbeta = 1.0\n[attack]\nsteps = 1\nforced = 0.5\n"
        "[optim]\nepochs = 3\nbatch_size = 16\nema = 0.9\n"
        "[validate]\nimages = 16\nattack_steps = 1\n" + text
    )
    return read_recipe(path)


def states_equal(a: Path, b: Path) -> bool:
    left, right = checkpoint.read(a)["run"], checkpoint.read(b)["run"]
    same = all(torch.equal(left["network"][k], right["network"][k]) for k in left["network"])
    averaged = all(torch.equal(left["ema_network"][k], right["ema_network"][k]) for k in left["ema_network"])
    return same and averaged and left["best_score"] == right["best_score"]


@pytest.mark.slow
def test_a_run_stopped_after_any_step_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Three epochs of four steps in one go and in twelve pieces give the same weights, averages and best figure."""
    torch.set_num_threads(1)
    recipe, images = tiny_recipe(tmp_path), small_set()
    train(recipe, images, tmp_path / "whole")
    for piece in range(1, 13):
        train(recipe, images, tmp_path / "pieces", resume=True, stop_after_minutes=0)
        run = checkpoint.read(tmp_path / "pieces" / "last.pt")["run"]
        assert 4 * run["epoch"] + run["steps_done"] == piece
    assert states_equal(tmp_path / "whole" / "last.pt", tmp_path / "pieces" / "last.pt")
    best = checkpoint.load(tmp_path / "pieces" / "best.pt")
    assert best.calibration is not None and set(best.calibration.thresholds) == {0.01, 0.05}
    assert best.metrics["validation"]["w_robust"] >= 0 and best.labels[3] == "class 3"
    histories = [json.loads((tmp_path / name / "history.json").read_text())["epochs"] for name in ("whole", "pieces")]
    for row, other in zip(*histories, strict=True):  # mean losses of an epoch, whatever it was cut into
        assert all(row[k] == other[k] for k in row if k not in ("train_seconds", "images_per_second"))


@pytest.mark.process
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_bit_for_bit(tmp_path: Path) -> None:
    """kill -9 loses what came after the last checkpoint, within an epoch too, and nothing else. While the process is
    there, even stopped, no other one goes on with its run."""
    recipe = tiny_recipe(tmp_path, "[runtime]\ncheckpoint_minutes = 1e-9\nthreads = 1\n")
    tiny_run = Path(__file__).with_name("tiny_run.py")
    command = [sys.executable, str(tiny_run), json.dumps(recipe), str(tmp_path / "killed")]
    killed = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed" / "last.pt"

    def within_an_epoch() -> int:
        assert killed.poll() is None, "no checkpoint within an epoch"
        run = checkpoint.read(last)["run"] if last.exists() else {"steps_done": 0}
        return 4 * run["epoch"] + run["steps_done"] if run["steps_done"] else 0

    seen = eventually(within_an_epoch, 600)
    killed.send_signal(signal.SIGSTOP)
    with pytest.raises(FileExistsError, match="another process"):
        train(recipe, small_set(), tmp_path / "killed", resume=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = checkpoint.read(last)["run"]
    assert seen <= 4 * run["epoch"] + run["steps_done"] < 12
    train_whole = runpy.run_path(str(tiny_run))["run"]
    for name in ("killed", "whole"):
        train_whole(recipe, tmp_path / name)
    assert states_equal(tmp_path / "whole" / "last.pt", last)


def send_in_step(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: signal.Signals) -> None:
    """This process gets these signals while it takes its `step`-th step from here on."""
    train_step, taken = training.trainer.run.train_step, itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(taken) == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return train_step(*arguments, **options)

    monkeypatch.setattr(training.trainer.run, "train_step", interrupted)


@pytest.mark.slow
@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_the_step_at_hand(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, though no checkpoint was due: what goes on ends with the bits of a run that nobody stopped."""
    torch.set_num_threads(1)
    recipe, images, before = tiny_recipe(tmp_path), small_set(), signal.getsignal(number)
    send_in_step(monkeypatch, 6, number)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, images, tmp_path / "stopped")
    monkeypatch.undo()
    run = checkpoint.read(tmp_path / "stopped" / "last.pt")["run"]
    assert (run["epoch"], run["steps_done"]) == (1, 2)
    assert signal.getsignal(number) is before
    for name in ("stopped", "whole"):
        train(recipe, images, tmp_path / name, resume=True)
    assert states_equal(tmp_path / "whole" / "last.pt", tmp_path / "stopped" / "last.pt")


STUCK = """
import ctypes, itertools, json, runpy, signal, sys
from pathlib import Path
import training.trainer.run
from training.train import train

signal.signal(signal.SIGINT, signal.default_int_handler)
tiny_run, recipe, out, call = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), getattr(ctypes, sys.argv[4])
train_step, taken = training.trainer.run.train_step, itertools.count(1)

def stuck(*arguments, **options):
    if next(taken) == 6:
        Path("stuck").touch()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second time it waits for itself
            call(None).pthread_mutex_lock(mutex)
    return train_step(*arguments, **options)

training.trainer.run.train_step = stuck
train(recipe, runpy.run_path(tiny_run)["images"](), out)
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(("number", "call"), [(signal.SIGINT, "CDLL"), (signal.SIGTERM, "PyDLL")])
def test_a_second_signal_ends_a_run_at_once(number: signal.Signals, call: str, tmp_path: Path) -> None:
    """For those who will not wait for a step or a validation, even one in C++ that never returns and never lets Python
    run (`PyDLL` keeps its lock): the last checkpoint is whole, and what goes on from it ends like any other run."""
    recipe = tiny_recipe(tmp_path, "[runtime]\ncheckpoint_minutes = 1e-9\nthreads = 1\n")
    tiny_run = Path(__file__).with_name("tiny_run.py")
    command = [sys.executable, "-c", STUCK, str(tiny_run), json.dumps(recipe), str(tmp_path / "stuck_run"), call]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = tmp_path / "stderr"
    with told.open("wb") as stderr, subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=stderr) as process:
        try:
            eventually(lambda: (tmp_path / "stuck").exists() or process.poll() is not None)
            process.send_signal(number)
            if call == "CDLL":  # as in a step of torch's, which lets other threads run
                eventually(lambda: b"\nstopping after this step; again: at once, unsaved\n" in told.read_bytes())
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            last = (tmp_path / "stuck_run" / "last.pt").read_bytes()
            process.send_signal(number)
            assert process.wait(30) == -number
            assert (tmp_path / "stuck_run" / "last.pt").read_bytes() == last
        finally:
            process.kill()
    run = checkpoint.read(tmp_path / "stuck_run" / "last.pt")["run"]
    assert (run["epoch"], run["steps_done"]) == (1, 1)
    whole = runpy.run_path(str(tiny_run))["run"]
    for name in ("stuck_run", "whole"):
        whole(recipe, tmp_path / name)
    assert states_equal(tmp_path / "whole" / "last.pt", tmp_path / "stuck_run" / "last.pt")


@pytest.mark.slow
def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the terminal is not meant for a script's background jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    send_in_step(monkeypatch, 1, signal.SIGINT)
    try:
        assert train(tiny_recipe(tmp_path), small_set(), tmp_path / "run")["epoch"] == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_says_that_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with a status, so that a script does not go on to the next stage."""
    tiny_recipe(tmp_path)
    monkeypatch.setattr(training.train, "load_images", lambda name, data_dir: small_set())
    send_in_step(monkeypatch, 1, signal.SIGTERM)
    argv = ["--recipe", tmp_path / "tiny.toml", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    assert main([str(a) for a in argv]) == 130
    assert "after 1 of its 4 steps; go on with --resume" in capsys.readouterr().out


@pytest.mark.slow
def test_without_instructions_for_bfloat16_a_run_is_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so once, its history and last.pt hold what was computed, and its bits are those of a float32 run. A run
    from a CPU that has them goes on, and says what changes."""
    torch.set_num_threads(1)
    images = small_set()
    plain, asked = (tiny_recipe(tmp_path, f"[runtime]\nbf16 = {value}\n") for value in ("false", "true"))
    for recipe in (plain, asked):
        recipe["optim"]["epochs"] = 1
    monkeypatch.setattr(training.train, "multiplies_bfloat16", lambda device: True)
    train(asked, images, tmp_path / "moved", stop_after_minutes=0)
    assert checkpoint.read(tmp_path / "moved" / "last.pt")["run"]["bf16"] is True
    assert "bfloat16" not in capsys.readouterr().out
    monkeypatch.setattr(training.train, "multiplies_bfloat16", lambda device: False)
    train(asked, images, tmp_path / "moved", resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "bfloat16" in line]
    assert len(lines) == 2 and "in bfloat16 so far and goes on in float32" in lines[1]
    for name, recipe in (("asked", asked), ("plain", plain)):
        train(recipe, images, tmp_path / name)
        assert capsys.readouterr().out.count("bfloat16") == (name == "asked")
        run = checkpoint.read(tmp_path / name / "last.pt")["run"]
        assert run["bf16"] is run["history"][0]["bf16"] is False
    assert states_equal(tmp_path / "asked" / "last.pt", tmp_path / "plain" / "last.pt")
    assert not states_equal(tmp_path / "moved" / "last.pt", tmp_path / "plain" / "last.pt")
    assert checkpoint.read(tmp_path / "asked" / "best.pt")["metrics"]["history"][0]["bf16"] is False


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its last.pt knows epochs only."""
    recipe, images = tiny_recipe(tmp_path), small_set()
    last = tmp_path / "run" / "last.pt"
    to_the_end_of_an_epoch(recipe, images, tmp_path / "run")
    document = checkpoint.read(last)
    for later in ("steps_done", "loss_sums", "seconds", "bf16"):
        del document["run"][later]
    checkpoint.save(last, document)
    train(recipe, images, tmp_path / "run", resume=True)
    train(recipe, images, tmp_path / "whole")
    assert states_equal(last, tmp_path / "whole" / "last.pt")


def to_the_end_of_an_epoch(recipe: dict[str, dict[str, object]], images: ImageSet, out: Path) -> None:
    """On with a run, step by step, until an epoch has ended."""
    train(recipe, images, out, resume=True, stop_after_minutes=0)
    while checkpoint.read(out / "last.pt")["run"]["steps_done"]:
        train(recipe, images, out, resume=True, stop_after_minutes=0)


@pytest.mark.slow
def test_a_compiled_run_computes_what_the_other_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runtime.compile`: what a step calls is traced, in each mode, forward and backward, and gives the same losses.

    What torch's compiler makes of the traces takes g++ and minutes: docs/training.md has a run by hand.
    """
    traced: list[str] = []
    compile_ = torch.compile

    def without_a_compiler(call: Callable[..., object]) -> Callable[..., object]:
        traced.append(call.__name__)
        return compile_(call, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    rows = []
    for name in ("plain", "compiled"):
        recipe = tiny_recipe(tmp_path, f"[runtime]\ncompile = {str(name == 'compiled').lower()}\n")
        recipe["optim"]["epochs"] = 1
        recipe["attack"] |= {"eps": 1e-5, "step": 1e-5}  # nothing hangs on the sign of a gradient
        train(recipe, small_set(32), tmp_path / name)
        rows += json.loads((tmp_path / name / "history.json").read_text())["epochs"]
    torch._dynamo.reset()
    assert traced == ["detect", "classify"]
    for part in ("nat", "adv", "type"):
        assert rows[1][part] == pytest.approx(rows[0][part], 1e-3)
    assert checkpoint.load(tmp_path / "compiled" / "best.pt").awnet.config.width == 4


def test_batches_that_make_no_equal_parts_are_refused(tmp_path: Path) -> None:
    """Parts of other sizes would weigh their images differently."""
    recipe, images = tiny_recipe(tmp_path), small_set()
    for microbatches, size in ((3, 1), (1, 3), (0, 1), (8, 4)):
        recipe["optim"]["microbatches"] = microbatches
        with pytest.raises(RecipeError, match=r"optim\.microbatches"):
            train(recipe, images, tmp_path / "run", world=World(0, size))


def test_synchronised_batch_norms_are_the_same_network(tmp_path: Path) -> None:
    """Same names and same answers in evaluation mode; refused where torch has none, on a CPU."""

    recipe, images = tiny_recipe(tmp_path), small_set()
    recipe["runtime"]["sync_batch_norm"] = True
    with pytest.raises(RecipeError, match="sync_batch_norm"):
        train(recipe, images, tmp_path / "run", world=World(0, 2))
    net, x = AWNet(AWNetConfig(width=4)).eval(), torch.rand(2, 3, 32, 32)
    expected, names = net(x), list(net.state_dict())
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert list(synchronised.state_dict()) == names and torch.equal(synchronised(x), expected)
    assert isinstance(synchronised.blocks[0].conv1.adv, torch.nn.SyncBatchNorm)


def test_validation_is_the_same_for_any_number_of_processes() -> None:
    """Together they judge every batch once, from the same random starts."""
    split = small_set().train
    runtime = Runtime(torch.device("cpu"), bf16=False)

    def judged(world: World) -> list[tuple[float, float]]:
        return [(float(x.sum()), float(torch.rand(()))) for x, _ in shared_batches(split, 10, runtime, world)]

    shares = [judged(World(r, 3)) for r in range(3)]
    assert sorted(j for share in shares for j in share) == sorted(judged(World())) and [len(s) for s in shares] == [
        3,
        2,
        2,
    ]


@pytest.mark.slow
def test_weight_perturbation_is_a_switch_with_a_first_epoch(tmp_path: Path) -> None:
    """Before `awp_from` a run is the plain one, bit for bit; from there on it is not, and it resumes like any other."""
    torch.set_num_threads(1)
    images, more = small_set(), "[data]\ntrain_images = 32\n"
    plain = tiny_recipe(tmp_path, more)
    later = {**plain, "optim": {**plain["optim"], "awp": 0.01, "awp_from": 2}}
    for _ in range(2):
        to_the_end_of_an_epoch(later, images, tmp_path / "awp")
        to_the_end_of_an_epoch(plain, images, tmp_path / "plain")
    assert states_equal(tmp_path / "awp" / "last.pt", tmp_path / "plain" / "last.pt")
    for name, recipe in (("awp", later), ("plain", plain), ("whole", later)):
        train(recipe, images, tmp_path / name, resume=True)
    assert not states_equal(tmp_path / "awp" / "last.pt", tmp_path / "plain" / "last.pt")
    assert states_equal(tmp_path / "awp" / "last.pt", tmp_path / "whole" / "last.pt")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Without --resume an existing run is never overwritten."""
    recipe, images = tiny_recipe(tmp_path, "[data]\ntrain_images = 16\n"), small_set()
    train(recipe, images, tmp_path / "run", stop_after_minutes=0)
    with pytest.raises(FileExistsError, match="--resume"):
        train(recipe, images, tmp_path / "run")


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("optim.epoch=3", "optim.epoch"),
        ("optimiser.lr=3", "optimiser"),
        ("lr=3", "table.key=value"),
        ("objective.name=trade", "objective.name"),
        ("network.depth=20", "depth"),
        ("network.image_size=64", "image_size"),
        ("data.set=imagenet", "data.set"),
        ("optim.epochs=x", "optim.epochs must be a whole number, at least 1, not 'x'"),
        ("optim.momentum=0", "optim.nesterov needs an optim.momentum above 0"),
        ("network.width=abc", "network.width must be a whole number, not 'abc'"),
        ("network.dynamic=x", "network.dynamic must be true or false, not 'x'"),
        ("network.mean=3", "network.mean must be a list, each item a number, not 3"),
        ("objective.label_smoothing=5", "objective.label_smoothing must be a number, from 0 to 1, not 5"),
        ("objective.teacher=3", "unknown key objective.teacher; known are label_smoothing, nat_weight"),
        ("network.num_classes=3", "unknown key network.num_classes"),
        ("objective.nat_weight=x", "objective.nat_weight must be a number, from 0 to 1, not 'x'"),
        ("objective.nat_batch_share=7", "objective.nat_batch_share must be a number, from 0 to 1, not 7"),
        ("optim.batch_size=65", "an epoch has no step"),
        ("network.freeze=['nothing']", "no part 'nothing'"),
        ("optim.microbatches=3", "optim.microbatches"),
        ("attack.start=n_fgsm", "attack.steps"),
        ("network.colour=3", "colour"),
        ("init.weights=x", "init.weights"),
        ('init.checkpoint="nowhere.pt"', "nowhere.pt"),
    ],
)
def test_a_wrong_recipe_gets_a_clear_error_and_leaves_nothing(
    tmp_path: Path, override: str, complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the key; exit code 2; no run folder appears."""
    monkeypatch.setattr("training.train.load_images", lambda _name, _folder: small_set())
    (tmp_path / "r.toml").write_text("[network]\nwidth = 4\n")
    code = main(
        ["--recipe", str(tmp_path / "r.toml"), "--data-dir", ".", "--out", str(tmp_path / "run"), "--set", override]
    )
    (said,) = capsys.readouterr().err.splitlines()
    assert code == 2 and said.startswith("error: ") and complaint in said
    assert not (tmp_path / "run").exists()


SETS = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny": (64, 200)}
PAPER = sorted((RECIPES / "paper").rglob("*.toml"))


@pytest.mark.parametrize("path", PAPER, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_full_scale_recipe_is_rehearsed(path: Path, tmp_path: Path) -> None:
    """Its network at a fraction of the width takes a step on four images, teachers and all, and ends in a best.pt."""
    name = path.parent.name
    size, classes = SETS[name]
    small = ["optim.epochs=1", "optim.batch_size=4", "data.train_images=4", "attack.steps=1"]
    small += ["validate.images=4", "validate.attack_steps=0"]
    recipe = read_recipe(path, small)
    assert recipe["data"]["set"] == name
    width = recipe["network"]["width"] = 4 if recipe["network"]["kind"] == "awnet" else 8
    if recipe["network"]["kind"] == "awnet":
        assert recipe["network"].get("image_size", 32) == size

    for needed in ("teacher-nat", "teacher-adv", "extractor"):
        assert (path.parent / f"{needed}.toml").is_file()  # what a recipe needs has a recipe of its own
        stand_in = build_static(StaticConfig("resnet18", width, classes))
        checkpoint.save(tmp_path / needed / "best.pt", checkpoint.pack(stand_in, labels=[], recipe={}))
    images = small_set(4, size, classes)
    train(recipe, images, tmp_path / "run", name=f"{name}/{path.stem}")
    assert len(checkpoint.load(tmp_path / "run" / "best.pt").labels) == classes


def test_augmentation_only_moves_and_flips_pixels() -> None:
    """Each crop is a window of the padded image or of its mirror image."""
    images = torch.arange(1, 1 + 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.int32)
    for seed in range(20):
        out = crop_and_flip(images, KeyedRng.of(seed, 0, 0, torch.arange(2)), padding=2)
        for source, crop in zip(images, out, strict=True):
            padded = torch.nn.functional.pad(source, (2,) * 4)
            windows = [p[:, t : t + 8, s : s + 8] for p in (padded, padded.flip(2)) for t in range(5) for s in range(5)]
            assert any(torch.equal(crop, window) for window in windows)


@pytest.mark.skipif(
    "AWNET_DATA_DIR" not in os.environ, reason="needs CIFAR-10: set AWNET_DATA_DIR to the folder of cifar-10-batches-py"
)
def test_the_split_is_fixed_and_disjoint() -> None:
    """45,000 / 5,000 / 10,000 images; the validation images are the same for every run, for ever."""
    images = load_cifar10(Path(os.environ["AWNET_DATA_DIR"]), download=False)
    assert [len(s) for s in (images.train, images.validation, images.test)] == [45_000, 5_000, 10_000]
    assert images.labels[3] == "cat"
    import hashlib

    assert hashlib.sha256(images.validation.labels.numpy().tobytes()).hexdigest()[:12] == "02224ac7d949"
    keys = {image.numpy().tobytes() for image in images.validation.images}
    assert (
        len(keys & {image.numpy().tobytes() for image in images.train.images}) <= 1
    )  # CIFAR-10 repeats an image or two


def test_missing_data_says_what_is_missing(tmp_path: Path) -> None:
    """No traceback from torchvision: the folder and what must lie in it."""
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        load_cifar10(tmp_path, download=False)


@pytest.mark.parametrize("case", ["no recipe", "a file", "under a file", "no checkpoint"])
def test_a_path_that_cannot_be_is_one_line_that_names_it(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2; of a missing checkpoint, its key and the recipes that make it."""
    monkeypatch.setattr(training.train, "load_images", lambda name, data_dir: small_set())
    recipe, taken, out = tmp_path / "r.toml", tmp_path / "taken", tmp_path / "run"
    recipe.write_text("[network]\nwidth = 4\n[optim]\nbatch_size = 16\n")
    taken.write_text("a file")
    override = 'init.trunk="0-trunk/best.pt"' if case == "no checkpoint" else "network.width=4"
    recipe = tmp_path / "nope.toml" if case == "no recipe" else recipe
    out = {"a file": taken, "under a file": taken / "run"}.get(case, out)
    says = {
        "no recipe": f"no recipe at {recipe}",
        "a file": f"--out {taken} is a file, and a run is a folder",
        "under a file": f"--out {out} cannot be made or written: Not a directory",
        "no checkpoint": f"init.trunk: no checkpoint at {tmp_path / '0-trunk/best.pt'}; train that stage "
        f"first: --recipe small/0-trunk --out {tmp_path / '0-trunk'}",
    }
    arguments = ["--recipe", str(recipe), "--data-dir", str(tmp_path), "--out", str(out), "--set", override]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {says[case]}\n"
    assert taken.read_text() == "a file" and not (tmp_path / "run").exists()


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m training.train ")


def test_a_mistyped_data_folder_is_named_and_not_made(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By training, evaluation and sweep: no download is tried into it."""
    nowhere, out = tmp_path / "dta", str(tmp_path / "out")
    (tmp_path / "r.toml").write_text("[network]\nwidth = 4\n")
    assert main(["--recipe", str(tmp_path / "r.toml"), "--data-dir", str(nowhere), "--out", out]) == 2
    assert sweep.main(["--data-dir", str(nowhere), "--runs", out]) == 2
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--ckpt", str(tiny_checkpoint), "--data-dir", str(nowhere), "--out", out])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(f"{nowhere}: no such folder" in line and "download" in line for line in said)
    assert [path.name for path in tmp_path.iterdir() if path.name in ("dta", "out")] == []


def test_a_run_goes_on_by_its_own_recipe_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another one is named with the key that differs, and last.pt stays; how long and where it runs may change."""
    images, out = small_set(), tmp_path / "run"
    recipe = tiny_recipe(tmp_path, "[data]\ntrain_images = 16\n")
    train(recipe, images, out, stop_after_minutes=0)
    before = (out / "last.pt").read_bytes()
    other = {**recipe, "attack": {**recipe["attack"], "eps": 4.0}}
    with pytest.raises(RecipeError, match=r"a run of another recipe, with attack\.eps .* and not 4\.0"):
        train(other, images, out, resume=True)
    wider = {**recipe, "network": {**recipe["network"], "width": 8}}
    with pytest.raises(RecipeError, match=r"network\.width"):
        train(wider, images, out, resume=True)
    assert (out / "last.pt").read_bytes() == before
    train({**recipe, "runtime": {**recipe["runtime"], "threads": 1}}, images, out, resume=True, stop_after_minutes=0)


@pytest.mark.parametrize("what", ["a text file", "a truncated file", "a model file", "a network"])
def test_what_is_no_run_is_not_gone_on_with(tmp_path: Path, what: str, tiny_checkpoint: Path) -> None:
    recipe, images, out = tiny_recipe(tmp_path, "[data]\ntrain_images = 16\n"), small_set(), tmp_path / "run"
    train(recipe, images, out, stop_after_minutes=0)
    last = out / "last.pt"
    broken = {
        "a text file": b"no checkpoint",
        "a truncated file": last.read_bytes()[:1000],
        "a model file": b"\x08\x0a\x12\x05awnet",
        "a network": tiny_checkpoint.read_bytes(),
    }
    last.write_bytes(broken[what])
    with pytest.raises(
        checkpoint.CheckpointError, match="no run to resume" if what == "a network" else "not a readable"
    ):
        train(recipe, images, out, resume=True)
    assert last.read_bytes() == broken[what]


def test_a_stage_that_is_no_checkpoint_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "trunk").mkdir()
    (tmp_path / "trunk/best.pt").write_text("no checkpoint")
    recipe = tiny_recipe(tmp_path, '[init]\ntrunk = "trunk/best.pt"\n')
    with pytest.raises(RecipeError, match=r"init\.trunk: .*trunk/best\.pt is not a readable checkpoint"):
        train(recipe, small_set(), tmp_path / "run")


@pytest.mark.process
def test_a_full_disk_ends_a_training_in_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: torch raises an error of its own over the system's."""
    shapes.main([str(tmp_path / "pictures"), "--train", "12", "--test", "3"])
    tiny = ["optim.epochs=1", "optim.batch_size=8", "data.size=8", "network.width=4", "data.held_out=0.3"]
    out = ["--recipe", "own/trunk", "--data-dir", str(tmp_path / "pictures"), "--out", str(tmp_path / "run")]
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    command = [sys.executable, "-c", f"{limited}from training.train import main; sys.exit(main(sys.argv[1:]))", *out]
    done = subprocess.run([*command, *(f"--set={one}" for one in tiny)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"^error: \[Errno \d+\] File too large: '{tmp_path}/run/(best|last)\.pt'$", done.stderr, re.M)
    assert not list((tmp_path / "run").glob("*.pt*"))
