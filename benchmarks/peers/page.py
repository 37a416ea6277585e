"""The report of `benchmarks.peers` as a page, and which goals were met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from .contestants import OURS, PEERS

RATIO = 1.7  # of requests a second, to the best peer with as many processes
MOVED = 1.05  # a p99 that is at most so many times the calm one, or no higher than in one of the calm rounds, stands


class Goal(NamedTuple):
    """What was asked for, what was measured, and what the machine lets a server reach where that is known."""

    what: str
    wanted: str
    found: str
    met: bool
    most: str = ""


def best_peer(contestants: dict[str, Any], clients: str, processes: str) -> tuple[str, float]:
    """Its name and requests a second; empty and 0 without a peer."""
    rates = {
        name: by[clients]["rps"]
        for name, by in contestants.items()
        if name.endswith(f"-{processes}") and not name.startswith(OURS) and clients in by
    }
    return max(rates.items(), key=lambda item: item[1], default=("", 0.0))


def ratios(contestants: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Clients, processes, the best peer, and our requests a second over its."""
    for clients in max(contestants.values(), key=len):
        for processes in ("1", "2"):
            ours = contestants.get(f"{OURS}-{processes}", {}).get(clients)
            name, rate = best_peer(contestants, clients, processes)
            if ours and rate:
                yield clients, processes, name, ours["rps"] / rate


def goals(found: dict[str, Any]) -> list[Goal]:
    """Those that this run has figures for."""
    contestants = found["contestants"]
    judged = []
    for clients, processes, name, ratio in ratios(contestants):
        if clients != "1":
            what = f"requests a second, {clients} clients, {_of(processes)}"
            met, most = ratio >= RATIO, _at_most(found, best_peer(contestants, clients, processes)[1])
            judged.append(Goal(what, f">= {RATIO} of the best peer", f"{ratio:.2f} of {name}", met, most))
    ours, plain = (contestants.get(name, {}).get("1") for name in (f"{OURS}-1", "fastapi-1"))
    if ours and plain:
        ratio, cores = ours["rps"] / plain["rps"], ours["cores"]
        wanted, measured = ">= 1 of plain FastAPI, one core busy", f"{ratio:.2f}, {cores:.2f} cores"
        judged.append(Goal("one client, one process", wanted, measured, ratio >= 1 and cores <= 1.1))
    if "beside" in found:
        name, by = max(_ours(contestants), key=lambda item: item[1]["32"]["rps"])
        share = by["32"]["rps"] / found["beside"]["images_per_second"]
        what = "requests a second, 32 clients, of the loop without a server beside the same client"
        judged.append(Goal(what, ">= 0.85", f"{share:.2f} ({name})", share >= 0.85))
    if (http := http_ms(found)) is not None:
        judged.append(Goal("processor time of HTTP, 32 clients", "<= 0.15 ms", f"{http:.3f} ms", http <= 0.15))
    judged += _steady(found)
    if "ready_seconds" in found:
        memory, seconds = found["start"][f"{OURS}-1"]["pss_mb"], statistics.median(found["ready_seconds"])
        judged.append(Goal("memory after load, one process", "<= 110 MB", f"{memory:.0f} MB", memory <= 110))
        judged.append(Goal("ready after", "<= 0.8 s", f"{seconds:.2f} s", seconds <= 0.8))
    return judged


def _at_most(found: dict[str, Any], rate: float) -> str:
    """Of the best peer's `rate`: what a server would reach whose own work costs nothing."""
    return f"{found['beside']['images_per_second'] / rate:.2f}" if "beside" in found else ""


def _ours(contestants: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, by) for name, by in contestants.items() if name.startswith(OURS) and "32" in by]


def _of(processes: str) -> str:
    return "one process" if processes == "1" else "two processes"


def http_ms(found: dict[str, Any]) -> float | None:
    """What the event loop takes for a request at 32 clients, less what decoding an image takes alone, in CPU time."""
    loop = found["contestants"].get(f"{OURS}-1", {}).get("32", {}).get("loop_ms")
    return None if loop is None or "decode_ms" not in found else float(loop - found["decode_ms"])


def _steady(found: dict[str, Any]) -> Iterator[Goal]:
    for processes, by in found.get("steady", {}).items():
        calm = by["calm"]
        ratio = calm["p99_ms"] / calm["p50_ms"]
        yield Goal(f"p99 at 70 % load, {_of(processes)}", "<= 3 times p50", f"{ratio:.1f} times", ratio <= 3)
        most = max(row["p99_ms"] for row in found["steady_samples"][processes]["calm"])
        for what, title in (("scraped", "with /metrics scraped at 10 Hz"), ("reload", "across a reload")):
            if what in by:
                p99, ratio = by[what]["p99_ms"], by[what]["p99_ms"] / calm["p99_ms"]
                measured = f"{ratio:.2f} times ({calm['p99_ms']:.1f} ms, calm rounds up to {most:.1f})"
                yield Goal(f"p99 {title}", "as when calm", measured, ratio <= MOVED or p99 <= most)


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    run, machine, contestants = found["run"], found["machine"], found["contestants"]
    with_ours = any(name.startswith(OURS) for name in contestants)
    lines = [
        "# Ours beside others that serve models"
        if with_ours
        else "# Peers with the settings that they were tried with",
        "",
        f"{machine['cpu']}, {machine['cores']} cores shared by servers and client; load "
        f"{machine['load_before'][0]:.1f} before, {machine['load_after'][0]:.1f} after (the run itself makes 2 to 4); "
        f"model `{run['model']['file']}`, a PNG of {run['image']['bytes']} bytes; medians of {run['rounds']} "
        f"interleaved rounds of {run['seconds']:g} s.",
        "",
        f"Made by `{run['command']}`; the environments by `python -m benchmarks.peers --set-up DIR`.",
    ]
    if judged := goals(found):
        lines += ["", "| | goal | measured | at most | |", "|---|---|---|---|---|"]
        lines += [
            f"| {g.what} | {g.wanted} | {g.found} |{g.most and f' {g.most}'} | {'met' if g.met else '**not met**'} |"
            for g in judged
        ]
        if any(g.most for g in judged):
            lines += [
                "",
                "At most: the loop without a server, beside the client of 32 connections, over the best peer (below): "
                "no server that decodes and runs each image on these cores reaches more.",
            ]
    for clients in run["clients"]:
        lines += ["", f"## {clients} clients" if clients != 1 else "## One client", ""]
        lines += ["| contestant | processes | requests/s | p50 ms | p99 ms | CPU ms a request | cores busy | failed |"]
        lines += ["|---|" + "--:|" * 7]
        for name, by in contestants.items():
            if (row := by.get(str(clients))) is None:
                continue
            who, _, processes = name.rpartition("-")
            lines.append(
                f"| {who} | {processes} | {row['rps']:.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.1f} "
                f"| {row['cpu_ms']:.2f} | {row['cores']:.2f} | {row['failed']:.0f} |"
            )
    lines += [f"\nLeft out: {name}: {why}" for name, why in found.get("absent", {}).items()]
    if beside := list(ratios(contestants)):
        lines += ["", "| clients | processes | the best peer | ours / its requests a second |", "|--:|--:|---|--:|"]
        lines += [f"| {clients} | {processes} | {name} | {ratio:.2f} |" for clients, processes, name, ratio in beside]
    return "\n".join([*lines, *_limits(found), *_at_70_percent(found), *_start(found), *_who(found), ""])


def _limits(found: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Without a server", "")
    raw = found["raw_images_per_second"]
    yield (
        f"Decoding and the model in a loop, one process a core: {raw['1']:.0f} images a second one by one, "
        f"{raw['16']:.0f} in batches of 16."
    )
    if beside := found.get("beside"):
        yield (
            f"Beside the client: {beside['images_per_second']:.0f} in batches of 16 while wrk with 32 connections "
            f"sends {beside['rate']:.0f} of the same requests a second to a program that does nothing but read "
            f"them and answer with as many bytes ({beside['partner_cpu_ms']:.3f} ms of CPU time a request)."
        )
    if (http := http_ms(found)) is not None:
        loop, decode = found["contestants"][f"{OURS}-1"]["32"]["loop_ms"], found["decode_ms"]
        yield (
            f"Processor time of HTTP is what the event loop's thread takes a request at 32 clients ({loop:.3f} ms: "
            f"sockets, parsing, decoding, handing over, verdict, answer), less what decoding takes alone "
            f"({decode:.3f} ms): {http:.3f} ms."
        )


def _at_70_percent(found: dict[str, Any]) -> Iterator[str]:
    if "steady" not in found:
        return
    yield from ("", "## Ours at 70 % of what it reached with 32 clients", "")
    yield (
        "An open loop: independent arrivals, each counted from when it was due. `scraped`: `/metrics` ten times a "
        "second. `reload`: the same model as a new version, a third of the time in; `during`: p99 of "
        "requests due meanwhile."
    )
    yield from (
        "",
        "| processes | | p50 ms | p99 ms | most ms | failed | reload took, ms | during, ms |",
        "|--:|---|" + "--:|" * 6,
    )
    for processes, by in found["steady"].items():
        for what, row in by.items():
            extra = f"{row['reload_ms']:.0f} | {row['under_ms']:.1f}" if "reload_ms" in row else "|"
            yield (
                f"| {processes} | {what} | {row['p50_ms']:.2f} | {row['p99_ms']:.1f} | {row['most_ms']:.1f} "
                f"| {row['failed']:.0f} | {extra} |"
            )


def _start(found: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Memory and start", "")
    yield (
        "Memory of all processes after the rounds (PSS: a page that n processes share counts as an nth in each), and "
        "one start each. `idle`: cores that it keeps busy while nobody asks; who polls is stopped meanwhile."
    )
    yield from (
        "",
        "| contestant | model processes | all processes | MB | ready after, s | idle | ended by itself |",
        "|---|" + "--:|" * 6,
    )
    for name, row in found["start"].items():
        who, _, processes = name.rpartition("-")
        yield (
            f"| {who} | {processes} | {row['processes']:.0f} | {row['pss_mb']:.0f} | {row['ready_seconds']:.1f} "
            f"| {row['idle_cores']:.2f} | {row['ended']:.0f} |"
        )


def _who(found: dict[str, Any]) -> Iterator[str]:
    """Versions and settings."""
    yield from ("", "## Versions and settings", "")
    yield from ("| | version | ONNX Runtime | settings, one process | two |", "|---|---|---|---|---|")
    for name, told in found["run"]["versions"].items():
        said = ["defaults, no line a request"] * 2
        if peer := PEERS.get(name):
            said = [", ".join(f"{key}={value}" for key, value in peer.settings[n][0].items()) for n in (1, 2)]
        version = told.get("version", "this checkout")
        yield f"| {name} | {version} | {told['onnxruntime']} | {said[0]} | {said[1]} |"
    yield ""
    yield "What they mean: `benchmarks/peers/apps/onnx_model.py`; a contestant with others has them in its name."
