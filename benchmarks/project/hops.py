"""Which functions of ours one image passes from HTTP to verdict, and one batch from data to update.

`counted` runs this file as a program in a checkout, so that it is the checkout's packages that run. It traces every
thread (sys.setprofile) and counts functions whose file lies in `server/` or `training/`, each once. A handover is a
call from a function of one module to a function of another, with any library between them.

An image: `/predict` with one PNG of the examples, one worker thread, the bundled model, a warm server. A batch: the
second batch of a run by the recipe below.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = ("server", "training")
IMAGE, BATCH = "one image, from HTTP to verdict", "one batch, from data to update"
REQUESTS = 9  # what happens to be called meanwhile, as by the golden probe, is in few of them
# Called by a timer, however the request goes.
TIMED = {
    "Server.on_tick",
    "DisconnectWatcher._look",
    "_Attention._look",
    "Admission._sweep",
    "Connection.sweep",
}
RECIPE = """
[network]
width = 8
beta = 4.0

[attack]
steps = 2
adv_branch_share = 0.5

[optim]
epochs = 1
batch_size = 8

[validate]
images = 8
attack_steps = 1
"""

Function = tuple[str, str]  # module, qualified name
Handover = tuple[Function, Function]


class Trace:
    """Functions entered and handovers while `recording`; install it with `begin`.

    `watch` is told (event, function) of each of ours, recorded or not.
    """

    def __init__(self, root: Path, watch: Callable[[str, Function], None] = lambda event, function: None) -> None:
        self.functions: set[Function] = set()
        self.handovers: set[Handover] = set()
        self.recording = False
        self._root, self._watch = root, watch
        self._known: dict[CodeType, Function | None] = {}

    def begin(self) -> None:
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        function = self._ours(frame.f_code)
        if function is None:
            return
        self._watch(event, function)
        if self.recording and event == "call":
            self.functions.add(function)
            caller = self._caller(frame)
            if caller is not None and caller[0] != function[0]:
                self.handovers.add((caller, function))

    def _caller(self, frame: FrameType) -> Function | None:
        outer = frame.f_back
        while outer is not None:
            function = self._ours(outer.f_code)
            if function is not None:
                return function
            outer = outer.f_back
        return None

    def _ours(self, code: CodeType) -> Function | None:
        if code not in self._known:
            self._known[code] = self._named(code)
        return self._known[code]

    def _named(self, code: CodeType) -> Function | None:
        path = Path(code.co_filename)
        # A comprehension is no function to whoever reads it.
        if not path.is_relative_to(self._root) or (code.co_name.startswith("<") and code.co_name != "<lambda>"):
            return None
        parts = path.relative_to(self._root).with_suffix("").parts
        return (".".join(parts), code.co_qualname) if parts[0] in PACKAGES else None


def report(functions: Iterable[Function], handovers: Iterable[Handover]) -> dict[str, list[str]]:
    """Sorted names, as JSON takes them."""
    listed = sorted(functions)
    return {
        "functions": [f"{module}:{name}" for module, name in listed],
        "modules": sorted({module for module, _ in listed}),
        "handovers": sorted(f"{a[0]}:{a[1]} -> {b[0]}:{b[1]}" for a, b in handovers),
    }


def image(root: Path) -> dict[str, list[str]]:
    """Serve in this process and ask it from a thread of its own; ends with the process's SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "PORT": port,
        "ADMIN_PORT": "none",
        "THREADS": 1,
        "POLL_SECONDS": 0,
        "DRAIN_SECONDS": 0,
    }.items():
        os.environ[f"AWNET_{name}"] = str(value)
    trace = Trace(root)
    seen: list[tuple[set[Function], set[Handover]]] = []
    image = (root / "examples/ship.png").read_bytes()

    def ask() -> None:
        sys.setprofile(None)  # a client is no part of the way
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        for turn in range(REQUESTS + 2):  # the first two warm up what is made once
            trace.functions, trace.handovers = set(), set()
            trace.recording = turn > 1
            request = urllib.request.Request(f"{url}/predict", image, {"Content-Type": "image/png"})
            urllib.request.urlopen(request, timeout=60).read()
            time.sleep(0.2)  # what is counted after the answer has gone
            trace.recording = False
            if turn > 1:
                seen.append((trace.functions, trace.handovers))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    trace.begin()
    sys.argv = ["server"]
    try:
        runpy.run_module("server", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
    functions = _usual(functions for functions, _ in seen)
    handovers = _usual(handovers for _, handovers in seen)
    return report(
        [function for function in functions if function[1] not in TIMED],
        [(caller, called) for caller, called in handovers if called[1] not in TIMED],
    )


def _usual(sets: Iterable[set[Any]]) -> set[Any]:
    """What is in more than half of them."""
    counted = Counter(member for members in sets for member in members)
    return {member for member, times in counted.items() if 2 * times > REQUESTS}


def batch(root: Path) -> dict[str, list[str]]:
    """Train three batches of random images in this process."""
    import torch

    from training.data.images import ImageSet, Split
    from training.train import read_recipe, train

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 10, (n,), generator=generator))

    drawn = 0

    def watch(event: str, function: Function) -> None:
        nonlocal drawn
        if event == "call" and function[1] == "shuffled_batches":
            drawn += 1
            trace.recording = drawn == 2
        elif event == "return" and function[1] == "Run.step":
            trace.recording = False

    trace = Trace(root, watch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(RECIPE, "utf-8")
        images = ImageSet(split(24), split(8), split(8), [f"class {n}" for n in range(10)])
        recipe = read_recipe(path)
        trace.begin()
        try:
            train(recipe, images, Path(folder) / "run")
        finally:
            sys.setprofile(None)
    return report(trace.functions, trace.handovers)


def counted(root: Path) -> dict[str, dict[str, list[str]]]:
    """Both ways through the checkout `root`, each in a process of its own there."""
    program = Path(__file__).read_text("utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWNET_") and k != "PYTHONPATH"}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, name in ((IMAGE, "image"), (BATCH, "batch")):
            out = Path(folder) / name
            subprocess.run(
                [sys.executable, "-c", program, name, str(out)],
                cwd=root,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
                timeout=600,
            )
            found[title] = json.loads(out.read_text("utf-8"))
    return found


if __name__ == "__main__":
    which, target = sys.argv[1:]
    ways = {"image": image, "batch": batch}
    Path(target).write_text(json.dumps(ways[which](Path.cwd())), "utf-8")
