"""A staged attack, timed: attack traffic -> alert pending -> firing -> Alertmanager -> webhook, and back again.

A server with the bundled model, a Prometheus with the committed rules, an Alertmanager and a webhook, all on the
loopback. An hour of mixed traffic goes through them, four times as fast: clean images, honest ones that were scaled,
lossily compressed or given a palette, broken uploads, and two attacks at threat level T0 (made on networks that had no
part in training the model), a small one with the example images' twins and a large one with CIFAR-10 test images. Only
the traffic is faster: windows, thresholds and `for` of the rules are the committed ones, scrapes and evaluations come
every five seconds, and Alertmanager waits 1 s where its default is 30 s. What is usual of uncalibrated images takes an
hour to learn, so their alerts are simulated by `benchmarks.monitoring.uncalibrated` instead.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..harness.processes import Server
from ..harness.prometheus import Alertmanager, Prometheus, Webhook
from ..harness.report import ROOT, add_out, bundled_checkpoint, bundled_model, missing, parser, publish
from . import draw_dashboard
from .staged import markdown, seen_by_prometheus

HELP_EXAMPLES = """examples:
  python -m benchmarks.monitoring.alerts                                  the example images and their twins alone
  python -m benchmarks.monitoring.alerts --data-dir data --t0 DELTA.pt    CIFAR-10 test images; DELTA.pt is what
                                                                          `python -m training.evaluate --cache DIR` kept
  python -m benchmarks.monitoring.alerts ... --keep DIR                   keep what Prometheus has seen, and
  python -m benchmarks.monitoring.alerts --again DIR                      read and draw that once more
"""
EXAMPLES = ROOT / "examples"
EXPECTED = ("AWNetAdversarialCusum", "AWNetAdversarialShare", "AWNetAdversarialCeiling")
INTERVAL_SECONDS = 5.0
FASTER = 4  # an hour in a quarter of one
BROKEN_SHARE, OTHER_SHARE = 0.03, 0.05
OTHER = "scaled, lossily compressed or given a palette"


class Phase(NamedTuple):
    """A part of the hour: how long it takes here, and which share of the images is attacked, with what."""

    name: str
    seconds: float
    share: float = 0.0
    images: str = ""


PHASES = (
    Phase("everyday traffic", 80),
    Phase("a few example twins", 40, 0.05, "examples"),
    Phase("quiet again", 235),
    Phase("an attack", 240, 0.3, "attacked"),
    Phase("after it", 305),
)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] uint8 as a file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example_images() -> tuple[list[bytes], list[bytes]]:
    """Clean examples and their adversarial twins, as files."""
    twins = sorted(EXAMPLES.glob("*-adversarial.png"))
    clean = [path.with_name(path.name.replace("-adversarial", "")) for path in twins]
    return [path.read_bytes() for path in clean], [path.read_bytes() for path in twins]


def cifar_images(data_dir: Path, kept: Sequence[Path]) -> tuple[list[bytes], list[bytes]]:
    """Clean test images, and T0 images of other ones, as files."""
    import torch

    from training.attacks.ascent import project, quantise
    from training.data.images import to_pixels
    from training.data.sets import load_cifar10

    test = load_cifar10(data_dir, download=False).test
    attacked, used = [], 0
    for path in kept:
        delta = torch.load(path, weights_only=True).float()
        x = to_pixels(test.images[: len(delta)])
        x_adv = quantise(project(x + delta, x, 8 / 255))
        attacked += list((x_adv * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
        used = max(used, len(delta))
    clean = test.images[used : used + 4000].permute(0, 2, 3, 1).numpy()
    return [png(image) for image in clean], [png(image) for image in attacked]


def honest_changes(clean: Sequence[bytes]) -> list[bytes]:
    """What honest people also send: the same images as JPEG, four times as large, and with a palette of 64 colours."""
    changed = []
    for n, file in enumerate(clean):
        with Image.open(BytesIO(file)) as image:
            buffer = BytesIO()
            if n % 3 == 2:
                image.convert("RGB").quantize(64).save(buffer, "PNG")
            elif n % 3:
                image.resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "PNG")
            else:
                image.convert("RGB").save(buffer, "JPEG", quality=85)
        changed.append(buffer.getvalue())
    return changed


class Traffic:
    """`rate` images a second from one caller, as `phase` says; `sent` counts them by kind.

    Args:
        images: files by kind: clean, other, examples, attacked.
    """

    def __init__(self, port: int, images: Mapping[str, Sequence[bytes]], rate: float) -> None:
        self.phase = PHASES[0]
        self.sent = dict.fromkeys((*images, "broken"), 0)
        self._port, self._images, self._rate = port, {**images, "broken": [b"no image"]}, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _kind(self, rng: random.Random) -> str:
        phase, chance = self.phase, rng.random()
        if chance < BROKEN_SHARE:
            return "broken"
        if rng.random() < phase.share:
            return phase.images
        return "other" if chance > 1 - OTHER_SHARE else "clean"

    def _run(self) -> None:
        rng = random.Random(0)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        following = time.monotonic()
        while not self._over.is_set():
            kind = self._kind(rng)
            body = rng.choice(self._images[kind])
            connection.request("POST", "/predict", body, {"content-type": "image/png"})
            connection.getresponse().read()
            self.sent[kind] += 1
            following += 1 / self._rate
            self._over.wait(max(0.0, following - time.monotonic()))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


class Timeline:
    """When each alert became pending, firing and resting, and when the webhook heard of it; seconds since `begun`."""

    def __init__(self, prometheus: Prometheus, webhook: Webhook) -> None:
        self._prometheus, self._webhook = prometheus, webhook
        self.begun = time.time()
        self.events: list[tuple[float, str, str]] = []  # (when, alert, what)
        self._states: dict[str, str] = {}
        self._heard = 0

    def look(self) -> None:
        """Note what has changed."""
        now = time.time() - self.begun
        states = self._prometheus.states()
        for name in states.keys() | self._states.keys():
            state = states.get(name, "resolved")
            if state != self._states.get(name):
                self.events.append((round(now, 1), name, state))
        self._states = states
        for at, message in self._webhook.messages[self._heard :]:
            for alert in message["alerts"]:
                event = (round(at - self.begun, 1), alert["labels"]["alertname"], f"webhook_{alert['status']}")
                self.events.append(event)
            self._heard += 1

    def until(self, seconds: float) -> None:
        """Look on until so many seconds after the beginning."""
        while time.time() - self.begun < seconds:
            self.look()
            time.sleep(0.25)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole staged attack; Prometheus's data stay in `folder`."""
    examples, twins = example_images()
    if options.data_dir and options.t0:
        names = sorted({path.stem.partition("-")[0] for path in options.t0})
        source = f"CIFAR-10 test images, T0 images of {' and '.join(names)}, and the twins of examples/"
        clean, attacked = cifar_images(options.data_dir, options.t0)
    else:
        source, clean, attacked = "the images of examples/ and their twins", examples, twins
    images = {"clean": clean, "other": honest_changes(clean[:400]), "examples": twins, "attacked": attacked}
    with ExitStack() as open_things:

        def keep(thing: Any) -> Any:
            open_things.callback(thing.stop)
            return thing

        webhook = keep(Webhook())
        alertmanager = keep(Alertmanager(folder / "alertmanager", webhook.url))
        server = keep(Server(folder))
        server.wait_ready(120)
        prometheus = keep(
            Prometheus(
                folder / "prometheus",
                {"awnet": [server.address]},
                interval=INTERVAL_SECONDS,
                alertmanager=alertmanager.address,
            )
        )
        traffic = keep(Traffic(server.port, images, options.rate))
        timeline = Timeline(prometheus, webhook)
        phases, ends = [], 0.0
        for phase in PHASES:
            begins, traffic.phase, sent = time.time() - timeline.begun, phase, dict(traffic.sent)
            ends += phase.seconds * options.scale
            timeline.until(ends)
            during = {kind: count - sent[kind] for kind, count in traffic.sent.items()}
            phases.append(
                {
                    "name": phase.name,
                    "share": phase.share,
                    "images": phase.images,
                    "begins": round(begins, 1),
                    "ends": round(ends, 1),
                    "sent": during,
                }
            )
            print(f"{phase.name}: {during}", file=sys.stderr)
        return {
            "images": source,
            "machine": {"python": platform.python_version(), "cores": os.cpu_count()},
            "prometheus": version("prometheus"),
            "alertmanager": version("prometheus-alertmanager"),
            "model_sha256": hashlib.sha256((bundled_model() / "model.onnx").read_bytes()).hexdigest(),
            "checkpoint_sha256": bundled_checkpoint(),
            "interval_seconds": INTERVAL_SECONDS,
            "faster": FASTER,
            "rate": options.rate,
            "broken_share": BROKEN_SHARE,
            "other_share": OTHER_SHARE,
            "other": OTHER,
            "begun": round(timeline.begun, 1),
            "phases": phases,
            "events": timeline.events,
        }


def version(program: str) -> str:
    """What `program --version` calls itself, the number only."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).split("version ")[1].split(",")[0].split()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    command_line = parser("monitoring.alerts", __doc__, HELP_EXAMPLES)
    add = command_line.add_argument
    add("--data-dir", type=Path, help="folder that holds cifar-10-batches-py/")
    add("--t0", type=Path, nargs="+", help="kept T0 differences of the first test images")
    add("--rate", type=float, default=16.0, help="images a second [16]")
    add("--scale", type=float, default=1.0, help="make every phase longer or shorter; the rules are not [1]")
    add("--keep", type=Path, help="folder for the data of Prometheus and what was noted")
    add("--again", type=Path, help="run nothing: read a kept folder once more")
    add("--images", type=Path, default=ROOT / "docs/images", help="where dashboard.png and on-call.png go")
    add_out(command_line, "alerts")
    options = command_line.parse_args(arguments)
    if missing("prometheus", "prometheus-alertmanager"):
        return 0
    with ExitStack() as open_things:
        if options.again:
            folder = options.again
            noted = json.loads((folder / "noted.json").read_text("utf-8"))
        else:
            folder = options.keep or Path(
                open_things.enter_context(tempfile.TemporaryDirectory(prefix="awnet-alerts-"))
            )
            folder.mkdir(parents=True, exist_ok=True)
            noted = run(options, folder)
            (folder / "noted.json").write_text(json.dumps(noted), "utf-8")
        # Asked afterwards, of a Prometheus that scrapes nothing more.
        prometheus = Prometheus(folder / "prometheus", {}, rules=False)
        open_things.callback(prometheus.stop)
        report = noted | seen_by_prometheus(prometheus, noted)
        draw_dashboard.dashboard(prometheus, report, options.images / "dashboard.png")
        draw_dashboard.on_call(report, options.images / "on-call.png")
    publish(options.out, report, markdown(report))
    silent = [name for name in EXPECTED if "webhook_firing" not in report["since_the_attack"].get(name, {})]
    if silent:
        print(f"never told: {', '.join(silent)}", file=sys.stderr)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
