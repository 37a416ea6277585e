"""The query guard against black-box attacks and honest traffic, through HTTP, and what it costs.

The bundled model answers; attackers are in `guard_attacks`, honest traffic in `honest_traffic`. The limit of like
images is read off honest traffic of the validation split; attacks are on images of the test split.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.audit.black_box import Pixels
from server.guard.guard import QueryGuard
from training.data import Source, load_images, to_bytes

from .guard_attacks import EPS, LIMIT, Client, attacks
from .harness import report
from .harness.closed_loop import lua, rotated, wrk
from .harness.processes import Server
from .honest_traffic import Traffic, png, traffic

EXAMPLES = """examples:
  AWNET_DATA_DIR=../data python -m benchmarks.query_guard
  AWNET_DATA_DIR=../data python -m benchmarks.query_guard --part honest --split validation --out /tmp/guard
"""
SEEDS = {"validation": 1, "test": 2}


def main() -> int:
    parser = report.parser("query_guard", __doc__, EXAMPLES)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("AWNET_DATA_DIR", "data")))
    parser.add_argument("--part", choices=["all", "honest", "attacks", "cost"], default="all")
    parser.add_argument("--split", choices=list(SEEDS), help="of honest traffic [both]")
    parser.add_argument("--images", type=int, default=4, help="attacked by each attack [4]")
    parser.add_argument("--queries", type=int, default=120, help="of most attacks on an image [120]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack on an image that is slowed [30]")
    parser.add_argument("--rows", default="", metavar="TEXT", help="attacks in whose name this stands [all]")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of the cost [12]")
    report.add_out(parser, "query_guard")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": report.loaded_machine(), "limit": LIMIT, "eps": EPS}
    if (kept := options.out.with_suffix(".json")).exists() and options.part != "all":
        found |= json.loads(kept.read_text("utf-8"))
    data = load_images(Source(), options.data_dir)
    splits = {"validation": data.validation, "test": data.test}
    with tempfile.TemporaryDirectory() as scratch:
        if options.part in ("all", "honest"):
            with Server(Path(scratch), query_guard="flag", query_guard_images=LIMIT) as server:
                server.wait_ready()
                for name in [options.split] if options.split else splits:
                    rows = traffic(name, to_bytes(splits[name].images).numpy(), SEEDS[name])
                    found.setdefault("honest", {})[name] = [honest(server.port, row) for row in tqdm(rows, desc=name)]
        if options.part in ("all", "attacks"):
            images, labels = to_bytes(data.test.images).numpy(), data.test.labels.numpy().astype(np.int64)
            found["seconds"] = options.seconds
            more = options.images, options.queries, options.seconds, options.rows
            for row in attacks(Path(scratch), images, labels, *more):
                found.setdefault("attacks", {})[row["name"]] = row
                report.publish(options.out, found, markdown(found))
        if options.part in ("all", "cost") and not report.missing("wrk"):
            found["cost"] = cost(Path(scratch), to_bytes(data.validation.images[:400]).numpy(), options.rounds)
    text = markdown(found)
    report.publish(options.out, found, text)
    print(text)
    return 0


def honest(port: int, row: Traffic) -> dict[str, Any]:
    """What the guard said of one client's traffic: most like images, and the share of images that it flagged."""
    client, most, flagged, sent = Client(port), 0, 0, 0
    files = row.files()
    while together := list(itertools.islice(files, row.at_once)):
        status, document, _ = client.ask(*together)
        assert status == 200, document
        for told in (result["query_guard"] for result in document["results"]):
            most, flagged, sent = max(most, told["similar_queries"]), flagged + told["repeated"], sent + 1
    client.close()
    return {"about": row.about, "images": sent, "most_similar": most, "flagged": flagged, "promised": row.promised}


# Cost.


def cost(scratch: Path, images: Pixels, rounds: int) -> dict[str, Any]:
    """CPU time of an image in the guard, and of a request with it and without, in pairs; every image is another one."""
    guard, spent = QueryGuard(LIMIT, 3600.0), []
    for turn in range(10):
        begun = time.thread_time()
        for n, image in enumerate(images):
            guard.look(f"client-{n % 20}", [guard.fingerprints.of(image ^ np.uint8(turn))], "", float(n))
        spent.append((time.thread_time() - begun) / len(images))
    (script := scratch / "post.lua").write_bytes(_script([png(image) for image in images[:200]]))
    samples: dict[int, dict[str, list[dict[str, float]]]] = {}
    states = ["off", "observe"]
    with Server(scratch, query_guard="off") as off, Server(scratch, query_guard="observe") as observe:
        servers = {"off": off, "observe": observe}
        for server in servers.values():
            server.wait_ready()
            wrk(server.port, 2, 1.0, script)
        for clients in (1, 8):
            samples[clients] = {state: [] for state in states}
            for turn in range(rounds):
                for state in rotated(states, turn):
                    server = servers[state]
                    samples[clients][state].append(wrk(server.port, clients, 2.0, script, [server.pid]))
    return {
        "images": len(images),
        "microseconds": 1e6 * statistics.median(spent),
        "rounds": rounds,
        "cpu_ms": {c: statistics.median(one["cpu_ms"] for one in by["off"]) for c, by in samples.items()},
        "ratios": {c: _ratios(by["off"], by["observe"]) for c, by in samples.items()},
    }


def _ratios(off: list[dict[str, float]], observe: list[dict[str, float]]) -> dict[str, list[float]]:
    """Quartiles of observe / off over the pairs."""
    return {
        name: statistics.quantiles([b[name] / a[name] for a, b in zip(off, observe, strict=True)], n=4)
        for name in ("cpu_ms", "p50_ms")
    }


def _script(files: list[bytes]) -> bytes:
    """For wrk: these files in turn."""
    bodies = ",\n".join('"' + "".join(f"\\{byte:03d}" for byte in file) + '"' for file in files)
    end = lua(b"").decode().partition("function done")
    return f"""wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
local files, at = {{{bodies}}}, 0
function request()
  at = at % #files + 1
  return wrk.format(nil, nil, nil, files[at])
end
{end[1]}{end[2]}""".encode()


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# The query guard: attacks, honest traffic, cost",
        "",
        "`python -m benchmarks.query_guard`, the bundled model behind `/predict`; more than "
        f"{found['limit']} different images of a client that are alike are too many. {machine['cpu']}, "
        f"{machine['cores']} cores shared with other work. What is counted and compared: "
        "[security.md](../../docs/security.md#the-query-guard).",
    ]
    for split, rows in found.get("honest", {}).items():
        lines += [
            "",
            f"## Honest traffic, {split} split",
            "",
            "One client each, a request an image. *Most alike*: the most different images held to one exemplar.",
            "",
            f"| traffic | images | most alike | flagged | at {found['limit']} |",
            "|---|---|---|---|---|",
        ]
        for told in rows:
            share = f"{told['flagged']} ({told['flagged'] / told['images']:.1%})" if told["flagged"] else "0"
            fate = "left alone" if not told["flagged"] else "**fails**"
            lines.append(f"| {told['about']} | {told['images']} | {told['most_similar']} | {share} | {fate} |")
    if "attacks" in found:
        lines += [
            "",
            "## Attacks on images of the test split that are answered right",
            "",
            f"Where the guard is `slow`, at most {found['seconds']:g} s an image. "
            f"*Wrong within {found['eps']}*: images of which some query, before it was disguised, lay within "
            f"{found['eps']} levels and got a wrong class; *nearest*: the median distance of the nearest such query of "
            f"each image. *Found*: of the attacks that asked more than {found['limit']} times, those that the guard "
            "found, and the query with which (median). *All*: events of all clients together.",
            "",
            f"| attack | as | guard | most queries | wrong within {found['eps']} | nearest | asked, median | found | "
            "with query | queries flagged | refused | all |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for one in found["attacks"].values():
            cells = [
                one["attack"],
                one["variant"],
                one["guard"],
                str(one["queries"]),
                f"{one['succeeded']} of {one['images']}",
                _shown(one["median_nearest"]),
                _shown(one["median_asked"]),
                f"{one['found']} of {one['long_enough']}",
                _shown(one["median_found_at"]),
                f"{one['flagged']:.0%}",
                str(one["refused"]),
                str(one["events_of_all"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if "cost" in found:
        spent = found["cost"]
        lines += [
            "",
            "## Cost",
            "",
            f"{spent['microseconds']:.0f} µs of CPU time for an image of 32 pixels that is like no other. Requests "
            f"with 200 such images in turn, {spent['rounds']} pairs of 2 s, `observe` / `off`, median and quartiles:",
            "",
            "| clients | CPU ms a request, off | CPU time | p50 |",
            "|---|---|---|---|",
        ]
        for clients, ratios in spent["ratios"].items():
            cells = [
                f"{ratios[name][1]:.3f} ({ratios[name][0]:.3f} to {ratios[name][2]:.3f})"
                for name in ("cpu_ms", "p50_ms")
            ]
            lines.append(f"| {clients} | {spent['cpu_ms'][clients]:.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
