"""A staged attack, timed: attack traffic -> alert pending -> firing -> Alertmanager -> webhook, and back again.

A server with the bundled model, a Prometheus with the committed rules, an Alertmanager and a webhook, all on the
loopback. Callers send clean pictures and a few broken uploads; then a share of the pictures is adversarial for some
minutes (threat level T0: made on networks that had no part in training the model); then they are clean again. An hour
of traffic in about a dozen minutes: only its length is shortened. Windows, thresholds and `for` of the rules are the
committed ones; scrapes and evaluations come every five seconds, as in deploy/prometheus/prometheus.yml; Alertmanager
waits 1 s where its default is 30 s.

    python -m benchmarks.alerts                                  # the example pictures and their twins
    python -m benchmarks.alerts --data-dir data --t0 DELTA.pt    # CIFAR-10 test images; DELTA.pt is what
                                                                 # `python -m training.evaluate --cache DIR` kept
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import draw_dashboard
from benchmarks.observed import ROOT, Alertmanager, Prometheus, Webhook, eventually, fetch, free_port

EXAMPLES = ROOT / "examples"
EXPECTED = ("AWNetAdversarialCusum", "AWNetAdversarialShare", "AWNetAdversarialCeiling")
INTERVAL_SECONDS = 5.0
BROKEN_SHARE = 0.03


def png(pixels: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] uint8 as a file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example_pictures() -> tuple[list[bytes], list[bytes]]:
    """Clean examples and their adversarial twins, as files."""
    twins = sorted(EXAMPLES.glob("*-adversarial.png"))
    clean = [path.with_name(path.name.replace("-adversarial", "")) for path in twins]
    return [path.read_bytes() for path in clean], [path.read_bytes() for path in twins]


def cifar_pictures(data_dir: Path, t0: Path) -> tuple[list[bytes], list[bytes]]:
    """Clean test images, and T0 images of other ones, as files."""
    import torch

    from training.attacks import project, quantise
    from training.data import load_cifar10, to_pixels

    delta = torch.load(t0, weights_only=True).float()
    test = load_cifar10(data_dir, download=False).test
    x = to_pixels(test.images[: len(delta)])
    x_adv = quantise(project(x + delta, x, 8 / 255))
    attacked = (x_adv * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    clean = test.images[len(delta) : len(delta) + 4000].permute(0, 2, 3, 1).numpy()
    return [png(picture) for picture in clean], [png(picture) for picture in attacked]


class Server:
    """`python -m server` with the bundled model."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
        command = [sys.executable, "-m", "server", "--port", str(self.port), "--admin-port", "none"]
        self._log = log.open("wb")
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=self._log)

        def ready() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {log.read_text('utf-8')[-2000:]}")
            try:
                fetch(f"http://{self.address}/v2/health/ready")
            except OSError:
                return False
            return True

        eventually(ready, 120, "the server is ready")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._log.close()


class Traffic:
    """`rate` pictures a second from one caller, `share` of them attacked; `sent`: clean, attacked, broken so far."""

    def __init__(self, port: int, clean: Sequence[bytes], attacked: Sequence[bytes], rate: float) -> None:
        self.share = 0.0
        self.sent = [0, 0, 0]
        self._port, self._clean, self._attacked, self._rate = port, clean, attacked, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rng = random.Random(0)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        following = time.monotonic()
        while not self._over.is_set():
            if rng.random() < BROKEN_SHARE:
                kind, body = 2, b"no picture"
            elif rng.random() < self.share:
                kind, body = 1, rng.choice(self._attacked)
            else:
                kind, body = 0, rng.choice(self._clean)
            connection.request("POST", "/predict", body, {"content-type": "image/png"})
            connection.getresponse().read()
            self.sent[kind] += 1
            following += 1 / self._rate
            self._over.wait(max(0.0, following - time.monotonic()))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _note(events: dict[str, float], state: str, at: float) -> None:
    """The first time of everything but of resolving: an alert of several series rests when the last of them does."""
    if state.endswith("resolved"):
        events[state] = at
    else:
        events.setdefault(state, at)


class Timeline:
    """When each alert became pending, firing and resting, and when the webhook heard of it; seconds since `begun`."""

    def __init__(self, prometheus: Prometheus, webhook: Webhook) -> None:
        self._prometheus, self._webhook = prometheus, webhook
        self.begun = time.time()
        self.events: dict[str, dict[str, float]] = {}
        self._states: dict[str, str] = {}
        self._heard = 0

    def look(self) -> dict[str, str]:
        """Note what has changed; the states as they are now."""
        now = time.time() - self.begun
        states = self._prometheus.states()
        for name in states.keys() | self._states.keys():
            state = states.get(name, "resolved")
            if state != self._states.get(name):
                _note(self.events.setdefault(name, {}), state, round(now, 1))
        self._states = states
        for at, message in self._webhook.messages[self._heard :]:
            for alert in message["alerts"]:
                events = self.events.setdefault(alert["labels"]["alertname"], {})
                _note(events, f"webhook_{alert['status']}", round(at - self.begun, 1))
            self._heard += 1
        return states

    def until(self, seconds: float, done: Any = lambda states: False) -> bool:
        """Look on until `done` or for so long; whether it was done."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if done(self.look()):
                return True
            time.sleep(0.5)
        return False


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole staged attack."""
    if options.data_dir and options.t0:
        source = "CIFAR-10 test images; T0 images of " + options.t0.stem.partition("-")[0]
        clean, attacked = cifar_pictures(options.data_dir, options.t0)
        attacked += example_pictures()[1]
    else:
        source = "the example pictures and their adversarial twins"
        clean, attacked = example_pictures()
    with ExitStack() as open_things:

        def keep(thing: Any) -> Any:
            open_things.callback(thing.stop)
            return thing

        webhook = keep(Webhook())
        alertmanager = keep(Alertmanager(folder / "alertmanager", webhook.url))
        server = keep(Server(folder / "server.log"))
        prometheus = keep(
            Prometheus(
                folder / "prometheus",
                {"awnet": [server.address]},
                interval=INTERVAL_SECONDS,
                alertmanager=alertmanager.address,
            )
        )
        traffic = keep(Traffic(server.port, clean, attacked, options.rate))
        timeline = Timeline(prometheus, webhook)
        timeline.until(options.quiet)
        before = dict(timeline.events)

        traffic.share = options.share
        attack_at, sent = time.time(), list(traffic.sent)
        timeline.until(options.attack)
        attack_ended = time.time()
        during = [after - first for after, first in zip(traffic.sent, sent, strict=True)]
        traffic.share = 0.0
        timeline.until(
            options.after,
            lambda states: (
                not states.keys() & {*EXPECTED}
                and all("webhook_resolved" in timeline.events.get(name, {}) for name in EXPECTED)
            ),
        )
        timeline.until(20)
        finished = time.time()
        if options.image:
            draw_dashboard.draw(
                prometheus,
                options.image,
                timeline.begun,
                finished,
                tiles_at=attack_ended - 1,
                attack=(attack_at, attack_ended),
                interval=f"{4 * INTERVAL_SECONDS:g}s",
            )
        rates = [
            {"at": round(when), "images_a_second": prometheus.query("sum(rate(awnet_verdicts_total[1m]))", time=when)}
            for when in (attack_at, attack_ended)
        ]
        share = prometheus.query(
            'sum(increase(awnet_verdicts_total{verdict="adversarial"}[1m])) / sum(increase(awnet_verdicts_total[1m]))',
            time=attack_ended,
        )
    offset = attack_at - timeline.begun
    return {
        "pictures": source,
        "machine": {"python": platform.python_version(), "cores": os.cpu_count()},
        "prometheus": version("prometheus"),
        "alertmanager": version("prometheus-alertmanager"),
        "interval_seconds": INTERVAL_SECONDS,
        "rate": options.rate,
        "attacked_share": options.share,
        "quiet_seconds": options.quiet,
        "attack_seconds": round(attack_ended - attack_at, 1),
        "sent_during_attack": dict(zip(("clean", "attacked", "broken"), during, strict=True)),
        "images_a_second": [float(entry["images_a_second"][0]["value"][1]) for entry in rates],
        "adversarial_share_in_the_last_minute": float(share[0]["value"][1]),
        "before_the_attack": {name: events for name, events in before.items() if name not in EXPECTED},
        "seconds_since_the_attack_began": {
            name: {state: round(at - offset, 1) for state, at in events.items()}
            for name, events in sorted(timeline.events.items())
        },
    }


def version(program: str) -> str:
    """What `program --version` calls itself, the number only."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).split("version ")[1].split(",")[0].split()[0]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# A staged attack, timed",
        "",
        "Made by `python -m benchmarks.alerts`; what happens in it stands at the top of that file. Everything ran on",
        "the loopback of one machine, which other work was using as well.",
        "",
        f"- Pictures: {report['pictures']}; {report['rate']:g} a second, {100 * BROKEN_SHARE:g} % of them broken.",
        f"- {report['quiet_seconds']:g} s of clean traffic, then {report['attack_seconds']:g} s in which "
        f"{100 * report['attacked_share']:g} % of the pictures are attacked "
        f"({report['sent_during_attack']['attacked']} of them), then clean ones again.",
        "- Adversarial verdicts in the last minute of it: "
        f"{100 * report['adversarial_share_in_the_last_minute']:.1f} %.",
        f"- Prometheus {report['prometheus']}, scraping and evaluating every {report['interval_seconds']:g} s, rules "
        f"as committed; Alertmanager {report['alertmanager']}.",
        "",
        "Seconds after the first attacked picture could have been sent:",
        "",
        "| alert | pending | firing | webhook told | resting again | webhook told |",
        "|---|---|---|---|---|---|",
    ]
    for name, events in report["seconds_since_the_attack_began"].items():
        if "firing" not in events and max(events.values()) < 0:
            continue  # pending while the stack was starting, and never more
        cells = [
            events.get(state, "") for state in ("pending", "firing", "webhook_firing", "resolved", "webhook_resolved")
        ]
        lines.append(f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |")
    lines += [
        "",
        "AWNetAdversarialCusum waits for nothing (`for: 0m`), so it is never pending. The two alerts on shares look at",
        "five minutes, so they rest only when the attack has left that window.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar-10-batches-py/")
    parser.add_argument("--t0", type=Path, help="kept T0 differences of the first test images")
    parser.add_argument("--rate", type=float, default=8.0, help="pictures a second [8]")
    parser.add_argument("--share", type=float, default=0.3, help="of them attacked, during the attack [0.3]")
    parser.add_argument("--quiet", type=float, default=120, help="seconds before it [120]")
    parser.add_argument("--attack", type=float, default=240, help="seconds of it [240]")
    parser.add_argument("--after", type=float, default=420, help="most seconds after it [420]")
    parser.add_argument("--image", type=Path, help="draw the dashboard's panels into this file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/alerts", help="without suffix")
    options = parser.parse_args(arguments)
    for program in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            print(f"skipped: {program} is not installed (apt-get install {program})", file=sys.stderr)
            return 0
    with tempfile.TemporaryDirectory(prefix="awnet-alerts-") as folder:
        report = run(options, Path(folder))
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    options.out.with_suffix(".md").write_text(markdown(report), "utf-8")
    missing = [
        name for name in EXPECTED if "webhook_firing" not in report["seconds_since_the_attack_began"].get(name, {})
    ]
    if missing:
        print(f"never told: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
