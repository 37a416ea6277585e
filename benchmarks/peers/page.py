"""The report of `benchmarks.peers` as a page, and which goals were met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .contestants import OURS

RATIO_GOAL = 1.7  # of requests a second, to the best peer with as many processes


class Goal(NamedTuple):
    """What was asked for, and what was measured."""

    what: str
    wanted: str
    found: str
    met: bool


def best_peer(contestants: dict[str, Any], clients: str, processes: str) -> tuple[str, float]:
    """Its name and requests a second; empty and 0 without a peer."""
    rates = {
        name: by[clients]["rps"]
        for name, by in contestants.items()
        if name.endswith(f"-{processes}") and not name.startswith(f"{OURS}-") and clients in by
    }
    return max(rates.items(), key=lambda item: item[1], default=("", 0.0))


def ratios(found: dict[str, Any]) -> Iterator[tuple[str, str, str, float, float]]:
    """Processes, clients, the best peer, its requests a second, and ours over them."""
    contestants = found["contestants"]
    for processes in ("1", "2"):
        ours = contestants.get(f"{OURS}-{processes}", {})
        for clients in ours:
            name, rate = best_peer(contestants, clients, processes)
            if rate:
                yield processes, clients, name, rate, ours[clients]["rps"] / rate


def goals(found: dict[str, Any]) -> list[Goal]:
    """Those that this run has figures for."""
    told = []
    for processes, clients, name, _, ratio in ratios(found):
        if clients in ("8", "32"):
            what = f"requests a second at {clients} clients, {processes} process{'es' if processes == '2' else ''}"
            told.append(Goal(what, f">= {RATIO_GOAL} of the best peer", f"{ratio:.2f} of {name}", ratio >= RATIO_GOAL))
    return told


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine, contestants = found["machine"], found["contestants"]
    load = " and ".join(
        f"{machine[when][0]:.1f} {said}" for when, said in (("load_before", "before"), ("load_after", "after"))
    )
    lines = [
        "# Beside others that serve models",
        "",
        f"{machine['cpu']}, {machine['cores']} cores shared by client and servers; load {load} (the run itself makes "
        f"some); a PNG of {found['image_bytes']} bytes; medians of {found['rounds']} interleaved rounds of "
        f"{found['seconds']:g} s. Made by `python -m benchmarks.peers --venvs DIR`.",
        "",
        "| | goal | measured | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {g.what} | {g.wanted} | {g.found} | {'met' if g.met else '**not met**'} |" for g in goals(found)]
    for clients in next(iter(contestants.values())):
        lines += ["", f"## {clients} clients" if clients != "1" else "## One client", ""]
        lines += ["| contestant, processes | requests/s | p50 ms | p99 ms | CPU ms a request | cores busy | failed |"]
        lines += ["|---|" + "--:|" * 6]
        for name, by in contestants.items():
            row = by[clients]
            kind, _, processes = name.rpartition("-")
            lines.append(
                f"| {kind}, {processes} | {row['rps']:.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.1f} "
                f"| {row['cpu_ms']:.2f} | {row['cores']:.2f} | {row['failed']:.0f} |"
            )
    return "\n".join([*lines, ""])
