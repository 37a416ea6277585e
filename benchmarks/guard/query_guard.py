"""The query guard against black-box attacks through HTTP and against honest traffic, and what it costs.

The bundled model answers; attackers are in `attacks`, honest traffic in `honest_traffic`. The limit of like
images is read off honest traffic of the validation split; attacks are on images of the test split.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domain.shares import wilson
from export.audit.black_box import Pixels
from server.core.images import EncodedImage, Limits
from server.guard.fingerprint import SIDE
from server.guard.guard import QueryGuard
from server.settings.settings import Settings
from training.data.sets import Source, load_images

from ..harness import report
from ..harness.closed_loop import rotated
from ..harness.processes import Server
from .attackers import EPS
from .attacks import LIMIT, attacks
from .honest_traffic import Traffic, png, traffic
from .movement import movement

EXAMPLES = """examples:
  AWNET_DATA_DIR=../data python -m benchmarks.guard.query_guard
  AWNET_DATA_DIR=../data python -m benchmarks.guard.query_guard --part honest --split validation --out /tmp/guard
"""
NOISE = Settings.model_fields["query_guard_noise"].default
MOVED = 200  # queries of each camera and attack in the comparison of their movement
SEEDS = {"validation": 1, "test": 2}


def main() -> int:
    parser = report.parser("guard.query_guard", __doc__, EXAMPLES)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("AWNET_DATA_DIR", "data")))
    parser.add_argument("--part", choices=["all", "movement", "honest", "attacks", "cost"], default="all")
    parser.add_argument("--split", choices=list(SEEDS), help="of honest traffic [both]")
    parser.add_argument("--images", type=int, default=24, help="attacked by each attack [24]")
    parser.add_argument("--queries", type=int, default=1000, help="of the longest attacks on an image [1000]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack on an image that is slowed [30]")
    parser.add_argument("--rows", default="", metavar="TEXT", help="attacks in whose name this stands [all]")
    parser.add_argument("--starts", type=int, default=4, help="of servers whose cost is compared [4]")
    parser.add_argument("--rounds", type=int, default=500, help="of each of them [500]")
    report.add_out(parser, "query_guard")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": report.loaded_machine(), "limit": LIMIT, "eps": EPS}
    if (kept := options.out.with_suffix(".json")).exists() and options.part != "all":
        found |= json.loads(kept.read_text("utf-8"))
    data = load_images(Source(), options.data_dir)
    splits = {"validation": data.validation, "test": data.test}
    if options.part in ("all", "movement"):
        of = data.validation.images.numpy(), data.validation.labels.numpy().astype(np.int64)
        found["movement"] = movement(*of, options.images, MOVED)
    if options.part in ("all", "honest"):
        for name in [options.split] if options.split else splits:
            rows = traffic(name, splits[name].images.numpy(), SEEDS[name])
            found.setdefault("honest", {})[name] = [honest(row) for row in tqdm(rows, desc=name)]
    with tempfile.TemporaryDirectory() as scratch:
        if options.part in ("all", "attacks"):
            images, labels = data.test.images.numpy(), data.test.labels.numpy().astype(np.int64)
            found["seconds"] = options.seconds
            more = options.images, options.queries, options.seconds, options.rows
            for row in attacks(Path(scratch), images, labels, *more):
                found.setdefault("attacks", {})[row["name"]] = row
                report.publish(options.out, found, markdown(found))
        if options.part in ("all", "cost"):
            found["cost"] = cost(Path(scratch), data.validation.images[:400].numpy(), options.starts, options.rounds)
    report.conclude(options.out, found, markdown(found))
    return 0


def honest(row: Traffic) -> dict[str, Any]:
    """What the guard says of one client's traffic: most like images, and the share of images that it flags.

    Without a server, and in the time that the traffic takes: the guard hears what the server's decoders make of files.
    """
    guard, most, flagged, sent = QueryGuard(LIMIT, 3600.0, NOISE), 0, 0, 0
    for file in row.files():
        image = guard.fingerprints.of(EncodedImage(file, Limits()).pixels(SIDE))
        [sighting] = guard.look("client", [image], "", sent * row.every)
        most, flagged, sent = max(most, sighting.similar), flagged + sighting.repeated, sent + 1
    return {"about": row.about, "images": sent, "most_similar": most, "flagged": flagged, "promised": row.promised}


# Cost.


CLIENTS = (1, 8)
STATES = {"off": "off", "control": "off", "observe": "observe"}  # contestants, and the guard of each


def cost(scratch: Path, images: Pixels, starts: int, rounds: int) -> dict[str, Any]:
    """CPU time of an image in the guard, and of a request with it and without, in pairs; every image is another one.

    Servers are started anew `starts` times, since two processes of one program differ by a percent or two; a second
    one without the guard shows what the comparison can tell. What else runs on the machine hits a pair alike, because
    its two parts are some milliseconds each.
    """
    files = itertools.cycle([png(image) for image in images[:200]])  # more than the guard remembers of a client
    spent: dict[int, dict[str, list[float]]] = {c: {name: [] for name in STATES} for c in CLIENTS}
    for _ in range(starts):
        with ExitStack() as stack:
            servers = {name: stack.enter_context(Server(scratch, query_guard=state)) for name, state in STATES.items()}
            for server in servers.values():
                server.wait_ready()
            for clients in CLIENTS:
                pool = stack.enter_context(ThreadPoolExecutor(clients))
                connections = {
                    name: [HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(clients)]
                    for name, server in servers.items()
                }
                for turn in tqdm(range(-50, rounds), desc=f"{clients} clients"):  # the first ones warm up
                    for name in rotated(list(STATES), turn):
                        chosen = list(itertools.islice(files, clients))
                        before = servers[name].cpu_seconds()
                        list(pool.map(_ask, connections[name], chosen))
                        if turn >= 0:
                            spent[clients][name].append((servers[name].cpu_seconds() - before) / clients)
                for connection in itertools.chain(*connections.values()):
                    connection.close()
    return {
        "images": len(images),
        "microseconds": _microseconds(images),
        "starts": starts,
        "rounds": rounds,
        "cpu_ms": {str(c): 1e3 * statistics.median(by["off"]) for c, by in spent.items()},
        "ratios": {
            str(c): {name: _ratio(by["off"], by[name]) for name in STATES if name != "off"} for c, by in spent.items()
        },
    }


def _ask(connection: HTTPConnection, file: bytes) -> None:
    connection.request("POST", "/predict", file, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200


def _microseconds(images: Pixels) -> dict[str, float]:
    """CPU time of an image in the engine's thread and on the event loop, one that is like no other."""
    guard, spent = QueryGuard(LIMIT, 3600.0, NOISE), []
    for turn in range(10):
        begun = time.thread_time()
        prints = [guard.fingerprints.of(image ^ np.uint8(turn)) for image in images]
        made = time.thread_time()
        for n, one in enumerate(prints):
            guard.look(f"client-{n % 20}", [one], "", float(n))
        spent.append((made - begun, time.thread_time() - made))
    fingerprint, look = (1e6 * statistics.median(part) / len(images) for part in zip(*spent, strict=True))
    return {"fingerprint": fingerprint, "look": look}


def _ratio(these: list[float], those: list[float]) -> list[float]:
    """Median of those / these over the pairs, and the ends of its 95 % interval."""
    ratios = sorted(b / a for a, b in zip(these, those, strict=True))
    return [statistics.median(ratios), *median_interval(ratios)]


def median_interval(ordered: list[float]) -> tuple[float, float]:
    """Of the median of values in order, at least 95 %, by the signs of the differences from it; no fewer than 6."""
    n, below, tail = len(ordered), 0, 0.5 ** len(ordered)
    while (tail := tail + math.comb(n, below + 1) * 0.5**n) <= 0.025:
        below += 1
    return ordered[below], ordered[n - 1 - below]


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# The query guard: attacks, honest traffic, cost",
        "",
        "`python -m benchmarks.guard.query_guard`, the bundled model behind `/predict`; more than "
        f"{found['limit']} different images of a client that are alike are too many. {machine['cpu']}, "
        f"{machine['cores']} cores shared with other work. What is counted and compared: "
        "[security.md](../../docs/security.md#the-query-guard).",
    ]
    if "movement" in found:
        lines += [
            "",
            "## What tells a camera from an attack",
            "",
            f"From query to query, of {MOVED} at most for an image of the validation split: how far images are apart "
            "(levels, root mean square: median, and 5 % and 95 % points), how far the margin of the logits moves "
            "(median), and how often the class changes.",
            "",
            "| queries of | images apart | margin moves | class changes |",
            "|---|---|---|---|",
        ]
        for row in found["movement"]:
            low, middle, high = row["apart"]
            lines.append(
                f"| {row['name']} | {middle:.2f} ({low:.2f} to {high:.2f}) | {row['margin']:.3f} | {row['flips']:.1%} |"
            )
    for split, rows in found.get("honest", {}).items():
        lines += [
            "",
            f"## Honest traffic, {split} split",
            "",
            "One client each. *Most alike*: the most different images held to one exemplar. By the server's decoders "
            "and its guard, in the time that the traffic takes, without a server between.",
            "",
            f"| traffic | images | most alike | flagged | at {found['limit']} |",
            "|---|---|---|---|---|",
        ]
        for client in rows:
            share = f"{client['flagged']} ({client['flagged'] / client['images']:.1%})" if client["flagged"] else "0"
            fate = "left alone" if not client["flagged"] else "**fails**"
            lines.append(f"| {client['about']} | {client['images']} | {client['most_similar']} | {share} | {fate} |")
    if "attacks" in found:
        lines += [
            "",
            "## Attacks on images of the test split that are answered right",
            "",
            f"Where the guard is `slow`, at most {found['seconds']:g} s an image. *Wrong within {found['eps']}*: share "
            f"of the images of which some query, before it was disguised, lay within {found['eps']} levels and got a "
            "wrong class; *nearest*: the median distance of the nearest such query of each image. *Found*: of the "
            f"attacks that asked more than {found['limit']} times, those that the guard found, and the query with "
            "which (median). Shares have 95 % intervals (Wilson). *All*: events of all clients together.",
            "",
            f"| attack | as | guard | images | most queries | asked, median | wrong within {found['eps']} | nearest | "
            "found | of | with query | queries flagged | refused | all |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for one in found["attacks"].values():
            cells = [
                one["attack"],
                one["variant"],
                one["guard"],
                str(one["images"]),
                str(one["queries"]),
                _shown(statistics.median(one["asked"])),
                _share(one["succeeded"], one["images"]),
                _shown(one["median_nearest"]),
                _share(one["found"], one["long_enough"]) if one["long_enough"] else "-",
                str(one["long_enough"]),
                _shown(_found_with(one)),
                f"{one['flagged']:.0%}",
                str(one["refused"]),
                str(one["events_of_all"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if "cost" in found:
        spent = found["cost"]
        each = spent["microseconds"]
        lines += [
            "",
            "## Cost",
            "",
            "CPU time for an image of 32 pixels that is like no other: "
            f"{each['fingerprint']:.0f} µs of an engine's thread for its fingerprint, {each['look']:.0f} µs of the "
            f"event loop to look it up. Requests with 200 such images in turn, {spent['starts']} times "
            f"{spent['rounds']} rounds of a request of each client, servers started anew each time; ratios to the "
            "server beside it that is `off`, median and its 95 % interval. *Control*: a second one that is `off`.",
            "",
            "| clients | CPU ms a request, off | control / off | `observe` / off |",
            "|---|---|---|---|",
        ]
        for clients, ratios in spent["ratios"].items():
            cells = ["{:.3f} ({:.3f} to {:.3f})".format(*ratios[name]) for name in ("control", "observe")]
            lines.append(f"| {clients} | {spent['cpu_ms'][clients]:.2f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _found_with(row: dict[str, Any]) -> float | None:
    found = [query for query in row["found_at"] if query]
    return float(statistics.median(found)) if found else None


def _share(hits: int, of: int) -> str:
    share, low, high = wilson(hits, of)
    return f"{share:.0%} ({low:.0%} to {high:.0%})"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
