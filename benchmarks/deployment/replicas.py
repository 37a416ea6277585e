"""Two replicas behind haproxy: what the query guard, rates and the CUSUM of each see, and what a `kill -9` costs.

Each replica counts by itself. haproxy with `deploy/haproxy.cfg` spreads requests in turns, by load, or sends a client
(`AWNET_BALANCE=hdr(x-awnet-address)`) or a key (`hdr(x-awnet-caller)`) to the same one each time. Attacks are those of
`guard.attackers` on the pictures of `examples/`, one image a request; limits and the model are those that a server has
by default.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..faults.scenarios import Bench
from ..guard.attacks import LIMIT
from ..harness import report
from .replica_parts import ADDRESS, BURST, KEY, LOAD, ONE, RATE, TURNS, cusum, evidence, guard, killed, rates

EXAMPLES = """examples:
  python -m benchmarks.deployment.replicas                          # some ten minutes
  python -m benchmarks.deployment.replicas --part kill --kills 2 --out /tmp/replicas
"""
TOLD = {
    ONE: "one replica",
    TURNS: "two, in turns",
    LOAD: "two, `leastconn` (the default)",
    ADDRESS: "two, by address",
    KEY: "two, by key",
}
PARTS = ("guard", "rates", "cusum", "kill")


def main() -> int:
    parser = report.parser("deployment.replicas", __doc__, EXAMPLES)
    parser.add_argument("--part", choices=["all", *PARTS], default="all", help="[all]")
    parser.add_argument("--pictures", type=int, default=6, help="attacked by each attack, at most [6]")
    parser.add_argument("--queries", type=int, default=280, help="of each attack on an image [280]")
    parser.add_argument("--seconds", type=float, default=6.0, help="in which a client asks as often as it may [6]")
    parser.add_argument("--kills", type=int, default=10, help="of a replica, for each way to spread requests [10]")
    report.add_out(parser, "replicas")
    options = parser.parse_args()
    if report.missing("haproxy"):
        return 0
    found: dict[str, Any] = {
        "what": "two replicas behind haproxy, by how it spreads requests",
        "machine": report.loaded_machine(),
        "limit": LIMIT,
        "rate": {"requests_per_second": RATE, "burst": BURST, "seconds": options.seconds},
    }
    if (kept := options.out.with_suffix(".json")).exists() and options.part != "all":
        found = json.loads(kept.read_text("utf-8")) | found
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        parts = PARTS if options.part == "all" else (options.part,)
        if "guard" in parts:
            found["guard"] = asyncio.run(guard(bench, options.queries, options.pictures))
        if "rates" in parts:
            found["rates"] = asyncio.run(rates(bench, options.seconds))
        if "cusum" in parts:
            found["cusum"] = asyncio.run(cusum(bench))
        if "kill" in parts:
            found["kill"] = [asyncio.run(killed(bench, balance, options.kills)) for balance in (LOAD, ADDRESS)]
            found["evidence"] = asyncio.run(evidence(bench))
    report.conclude(options.out, found, markdown(found))
    return 0


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# Two replicas behind haproxy",
        "",
        f"{machine['cpu']}, {machine['cores']} cores shared with clients, haproxy and other work, load "
        f"{machine['load_before'][0]:.1f} at the start. Each replica counts rates and like queries by itself. "
        "Made by `python -m benchmarks.deployment.replicas`.",
    ]
    if "guard" in found:
        lines += [
            "",
            "## With which query an attacker is found",
            "",
            f"`AWNET_QUERY_GUARD=flag`, {found['limit']} like images; one image a request. *Found*: of the attacks "
            f"that went on for more than {2 * found['limit'] + 2} queries, or were found before.",
            "",
            "| attack | from | requests go to | found | at query: median | least | most |",
            "|---|---|---|--:|--:|--:|--:|",
        ]
        for row in found["guard"]:
            who = f"{row['addresses']} addresses, one key" if row["keyed"] else "one address"
            at = sorted(n for n in row["found_at"] if n)
            queries = f"{statistics.median(at):g} | {at[0]} | {at[-1]}" if at else "| | "
            lines.append(
                f"| {row['attack']} | {who} | {TOLD[row['balance']]} | {row['found']} of {row['long_enough']} "
                f"| {queries} |"
            )
    if "rates" in found:
        rate = found["rate"]
        lines += [
            "",
            "## Rates",
            "",
            f"One client that asks as often as it can for {rate['seconds']:g} s; it may send {rate['burst']} at once "
            f"and {rate['requests_per_second']:g} a second, "
            f"{rate['burst'] + rate['seconds'] * rate['requests_per_second']:g} in all.",
            "",
            "| requests go to | answered | refused |",
            "|---|--:|--:|",
            *[f"| {TOLD[row['balance']]} | {row['answered']} | {row['refused']} |" for row in found["rates"]],
        ]
    if "cusum" in found:
        lines += [
            "",
            "## The CUSUM of a replica",
            "",
            "One client, a quarter of its images attacked, at random: images until a replica raises its alarm, and "
            "what all have counted then. `AWNetReplicasCusum` is of all replicas together, and needs no stickiness.",
            "",
            "| requests go to | images | flagged `adversarial` | counted by all |",
            "|---|--:|--:|--:|",
            *[
                f"| {TOLD[row['balance']]} | {row['images']} | {row['flagged']} | {row['counted']:g} |"
                for row in found["cusum"]
            ],
        ]
    if "kill" in found:
        lines += [
            "",
            "## `kill -9` of a replica under load",
            "",
            "Eight callers from one address, small images; the replica with most of the load is killed, and back in "
            "rotation before the next kill. *Not counted*: right answers that no scrape, one a second, has seen.",
            "",
            "| requests go to | kills | requests | failed | wrong answers | in flight at the kills | "
            "tried again by haproxy | slowest after a kill, s | not counted |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in found["kill"]:
            lines.append(
                f"| {TOLD[row['balance']]} | {row['kills']} | {row['requests']} | {sum(row['failed'])} | "
                f"{row['outcomes'].get('wrong', 0)} | {sum(row['in_flight'])} | {row['retried']} | "
                f"{row['slowest_seconds']:g} | {row['answered'] - row['counted']:g} |"
            )
        one = found["evidence"]
        lines += [
            "",
            f"What a replica knew of its clients goes with it: an attacker that had sent {one['before']} like images "
            f"when its replica was killed was found by the other one after {one['at_the_other']} more, and, back at "
            f"the first one when that had been started again, after another {one['back_at_the_first']}.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
