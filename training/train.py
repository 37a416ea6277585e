"""Trains a network by a recipe; see `options.TRAIN` for what it writes, and docs/training.md."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .core.files import write_json
from .core.hardware import DeviceError, multiplies_bfloat16
from .data.folder import DataError
from .data.images import ImageSet
from .data.sets import Source, load_images
from .networks import checkpoint
from .options import train_parser
from .trainer.distributed import SINGLE_PROCESS, World, process_group
from .trainer.recipe import RecipeError, read_recipe
from .trainer.run import Run, locked
from .trainer.step import Runtime
from .trainer.validation import finalise, measure, pack_best, selection_score


def train(
    recipe: Mapping[str, Mapping[str, Any]],
    images: ImageSet,
    out: Path,
    *,
    name: str = "recipe",
    resume: bool = False,
    device: str | torch.device = "cpu",
    stop_after_minutes: float | None = None,
    world: World = SINGLE_PROCESS,
) -> dict[str, float]:
    """Run (or go on with) a training; returns the best validation figures. See the module's docstring for the files.

    Everything random in it follows from (seed, epoch, step, image), so that a run that is stopped anywhere and goes
    on ends, on a CPU, with the very bits of one that was not.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the run is saved as it stood after the step at hand.
    """

    def say(text: str) -> None:
        if world.first:
            tqdm.write(text)

    clock = Clock(recipe["runtime"]["checkpoint_minutes"], stop_after_minutes)
    if (out / "last.pt").exists() and not resume:
        raise FileExistsError(f"{out} holds a run already: go on with --resume, or name another --out")
    bf16 = recipe["runtime"]["bf16"]
    if bf16 and not all(world.gather(multiplies_bfloat16(torch.device(device)))):
        bf16 = False
        say("runtime.bf16: this CPU has no instructions for bfloat16; computing in float32, which is faster here")
    runtime = Runtime(torch.device(device), bf16)
    if recipe["runtime"]["threads"]:
        torch.set_num_threads(recipe["runtime"]["threads"])
    if runtime.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change; the fastest algorithm is found once
    run = Run(recipe, images, out, runtime, world)
    lock = locked(out) if world.first else None
    if resume and (out / "last.pt").exists() and (was := run.load()) != runtime.bf16:
        names = {True: "bfloat16", False: "float32"}
        say(f"this run was computed in {names[was]} so far and goes on in {names[bf16]}")
    if recipe["runtime"]["compile"]:
        run.compile()
    run.synchronise()
    progress, validation = run.progress, images.validation.head(recipe["validate"]["images"])
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=run.steps) if world.first else None
    stop = False
    clock.start()
    with clock.heeding_signals(twice_ends=world.size == 1, says=world.first):
        while not run.finished and not stop:
            if not take_steps(run, clock, writer, name):
                break
            row, network = run.end_epoch(), run.ema_network
            figures: dict[str, float] = {}
            if progress.epoch % recipe["validate"]["every"] == 0 or run.finished:
                steps = recipe["validate"]["attack_steps"]
                figures = measure(network, run.objective, validation, steps, runtime, world)
            progress.history.append(row | {f"validation_{k}": round(v, 4) for k, v in figures.items()})
            say(json.dumps(progress.history[-1]))
            if selection_score(figures) > progress.best_score:
                progress.best_score = selection_score(figures)
                finalise(network, run.objective, validation, world)
                if world.first:
                    metrics = {"validation": figures, "epoch": progress.epoch, "history": progress.history}
                    checkpoint.save(out / "best.pt", pack_best(network, images, recipe, name, metrics, runtime.device))
            clock.save(run)
            if writer:
                for key, value in figures.items():
                    writer.add_scalar(f"validation/{key}", value, run.steps)
                write_json(out / "history.json", {"name": name, "recipe": dict(recipe), "epochs": progress.history})
            (stop,) = world.from_first(clock.over(clock.saved))
    if not run.finished:
        say(
            f"stopped in epoch {progress.epoch + 1} after {progress.steps_done} of its {run.steps_per_epoch} steps; "
            "go on with --resume"
        )
    if writer:
        writer.close()
    if lock:
        lock.close()
    if clock.asked:
        raise KeyboardInterrupt
    return {"best": progress.best_score, **(progress.history[-1] if progress.history else {})}


class Clock:
    """When last.pt is due (0 minutes: at the end of epochs only), and when a run has had its time (None: never).

    The first process's clock decides for all of them.

    Attributes:
        asked: a signal asked the run to stop.
    """

    def __init__(self, checkpoint_minutes: float, stop_after_minutes: float | None) -> None:
        self.every = 60 * checkpoint_minutes or float("inf")
        self.limit = float("inf") if stop_after_minutes is None else 60 * stop_after_minutes
        self.began = self.saved = time.monotonic()
        self.asked = False

    @contextmanager
    def heeding_signals(self, twice_ends: bool, says: bool = True) -> Iterator[None]:
        """Ctrl-C and SIGTERM (which a scheduler sends when time is up) stop the run between two steps, not within one,
        which this process `says` at once.

        A second one ends the process at once where `twice_ends`, by the kernel, even in the middle of a call to C++:
        not under torchrun, which passes on to its processes what the terminal has sent them already. A signal that
        this process was started to ignore, as a script's background jobs ignore Ctrl-C, stays ignored. Other threads
        than the first get none and have nothing to heed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self.asked = True
            if twice_ends:
                for one in earlier:
                    signal.signal(one, signal.SIG_DFL)

        earlier = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        earlier = {one: handler for one, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}
        for one in earlier:
            signal.signal(one, ask)
            if twice_ends:
                handle_once(one)
        message = "stopping after this step" + ("; again: at once, unsaved" if twice_ends else "")
        try:
            with saying_at_signals(earlier, message) if says else nullcontext():
                yield
        finally:
            for one, handler in earlier.items():
                signal.signal(one, handler)

    def start(self) -> None:
        """From here on there is something to save."""
        self.saved = time.monotonic()

    def save(self, run: Run) -> None:
        run.save()
        self.saved = time.monotonic()

    def over(self, now: float) -> bool:
        return self.asked or now - self.began > self.limit

    def stops(self, run: Run) -> bool:
        """Between two steps of an epoch: save `run` where that is due, or where it stops here, which is the answer."""
        now = time.monotonic()
        due, stop = run.world.from_first(now - self.saved > self.every, self.over(now))
        if due or stop:
            self.save(run)
        return stop


class Action(ctypes.Structure):
    """C's `struct sigaction` on Linux, in glibc and musl."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


def handle_once(number: signal.Signals) -> None:
    """Let the kernel take this signal's handler away as it calls it (Linux), so that the next one ends the process.

    Python runs its handlers between two of its own instructions: where a call to C++ does not return, it never does.
    """
    if sys.platform == "linux":
        libc, action = ctypes.CDLL(None), Action()
        libc.sigaction(number, None, ctypes.byref(action))
        action.flags |= 0x80000000  # SA_RESETHAND
        libc.sigaction(number, ctypes.byref(action), None)


@contextmanager
def saying_at_signals(heeded: Iterable[int], text: str) -> Iterator[None]:
    """`text` on stderr as soon as one of these signals comes, even in the middle of a step that takes half a minute.

    Python's own handlers wait until a call to C++ returns; what C writes of a signal into this socket, a thread reads
    meanwhile. It writes past tqdm and Python's buffers, whose locks the first thread may hold.
    """
    heeded = set(heeded)
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def say() -> None:
        while came := reader.recv(1):
            if came[0] in heeded:
                with suppress(OSError):  # a terminal that is gone
                    os.write(2, f"\n{text}\n".encode())

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def take_steps(run: Run, clock: Clock, writer: SummaryWriter | None, name: str) -> bool:
    """The steps that are left of an epoch; returns whether all are taken (if not, the run is saved as it stands)."""
    progress, epochs = run.progress, run.recipe["optim"]["epochs"]
    run.net.train()
    started, earlier, first = time.monotonic(), progress.seconds, progress.steps_done
    bar = tqdm(
        run.batches(),
        total=run.steps_per_epoch,
        initial=first,
        desc=f"{name} {progress.epoch + 1}/{epochs}",
        unit="batch",
        mininterval=0.5 if sys.stderr.isatty() else 20,
        disable=not run.world.first,
    )
    for x, y, rng in bar:
        losses = run.step(x, y, rng)
        if writer and losses is not None and run.shown:
            took = (time.monotonic() - started) / (progress.steps_done - first)
            left = timedelta(seconds=round(took * (epochs * run.steps_per_epoch - run.steps)))
            shown = {k: f"{v:.3f}" for k, v in losses.terms.items()}
            bar.set_postfix({"img/s": f"{run.batch_size / took:.0f}", "run": f"{left} left", **shown})
            for part, value in losses.terms.items():
                writer.add_scalar(f"train/{part}", value, run.steps - 1)
        progress.seconds = earlier + time.monotonic() - started
        if progress.steps_done < run.steps_per_epoch and clock.stops(run):
            bar.close()
            return False
    return True


def main(argv: Sequence[str] | None = None, prog: str = "python -m training.train") -> int:
    """The command line, as `prog`; returns the exit status."""
    args = train_parser(prog).parse_args(argv)
    try:
        if args.checkpoint_every is not None:
            args.set.append(f"runtime.checkpoint_minutes={args.checkpoint_every}")
        recipe = read_recipe(args.recipe, args.set)
        with process_group(args.device) as (world, device):
            if not world.first:
                world.barrier()  # the first may have to download them
            images = load_images(Source.of(recipe["data"]), args.data_dir)
            if world.first:
                world.barrier()
            if world.first:
                for note in images.notes:
                    print(f"note: {note}", file=sys.stderr)
            result = train(
                recipe,
                images,
                args.out,
                name="/".join(args.recipe.with_suffix("").parts[-2:]),
                resume=args.resume,
                device=device,
                stop_after_minutes=args.stop_after,
                world=world,
            )
    except (RecipeError, DataError, DeviceError, checkpoint.CheckpointError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # the status of whatever Ctrl-C ended: a script must not go on to its next stage
    if world.first:
        print(json.dumps({key: value for key, value in result.items() if math.isfinite(value)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
