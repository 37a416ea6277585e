"""The server beside its peers and beside the bare model, in one run: speed, latency, CPU time, memory, start.

Every contestant serves the same model file and decodes the same upload in the same way, with the settings that were
best among those that `contestants.py` names; before anything is timed, class and score of each are compared. They are
asked in turn by a closed loop of wrk, in rounds whose order rotates; those that poll are stopped meanwhile. Figures are
medians over the rounds. Ratios are between contestants with the same number of processes that run the model. Then an
open loop asks ours at 70 % of what it reached: calm, with /metrics scraped, and across a reload.

A run that is broken off goes on after its last whole round when the same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..harness import report, stage_times
from ..harness.closed_loop import add_image, add_model, add_rounds, medians, model_file, rotated, uploaded
from . import limits, steady
from .contestants import OURS, PEERS, Contestant, by_form, contestant, start, tried
from .environments import missing, set_up, versions
from .field import Field
from .page import markdown

EXAMPLES = """examples:
  python -m benchmarks.peers --set-up ~/peers-venvs                     an environment for each peer, 2 GB
  python -m benchmarks.peers --venvs ~/peers-venvs                      about twelve minutes
  python -m benchmarks.peers --venvs ~/peers-venvs --rounds 2 --seconds 2    five
  python -m benchmarks.peers --only awnet fastapi --clients 8 32        needs no environment
  python -m benchmarks.peers --only awnet awnet:lone_threads=0 fastapi:THREADS=0 --processes 1 --no-steady
  python -m benchmarks.peers --only ray --try-settings --venvs ~/peers-venvs --out /tmp/ray
"""


def main() -> int:
    options = arguments()
    try:
        if options.set_up:
            set_up(options.set_up, dict.fromkeys(contestant(text, 1).name for text in options.only))
            return 0
        if report.missing("wrk"):
            return 0
        who = field_of(options)
        model = model_file(options.repository, options.model, options.version)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = measure(options, who, model)
    text = markdown(found)
    report.publish(options.out, found, text)
    partial(options.out).unlink(missing_ok=True)
    print(text)
    return 0


def arguments() -> argparse.Namespace:
    parser = report.parser("peers", __doc__, EXAMPLES)
    add_model(parser)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    parser.set_defaults(rounds=4, seconds=3.0)
    add = parser.add_argument
    names = (OURS, *PEERS)
    add("--only", nargs="+", default=names, metavar="NAME", help=f"of {', '.join(names)}, or NAME:SETTING=VALUE [all]")
    add("--processes", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="that run the model [1 2]")
    add("--venvs", type=Path, metavar="DIR", help="the environments that --set-up made")
    add("--set-up", type=Path, metavar="DIR", help="make an environment for each of --only there, and end")
    add("--try-settings", action="store_true", help="each peer with each of the settings that it was tried with")
    add("--no-steady", dest="steady", action="store_false", help="leave out ours at 70 %% load")
    report.add_out(parser, "peers")
    return parser.parse_args()


def field_of(options: argparse.Namespace) -> list[Contestant]:
    """Who takes part. Raises ValueError."""
    who = [contestant(text, processes) for text in options.only for processes in options.processes]
    if options.try_settings:
        who = [each for one in who if one.name != OURS for each in tried(one.name, one.processes)]
    if without := missing(options.venvs, dict.fromkeys(one.name for one in who)):
        raise ValueError(f"no environment for {', '.join(without)}: --set-up DIR makes them, --venvs DIR names them")
    if options.rounds < 1 or options.seconds < 1:
        raise ValueError("--rounds and --seconds must be 1 or more")
    return who


def measure(options: argparse.Namespace, who: list[Contestant], model: Path) -> dict[str, Any]:
    """All rounds; returns the report."""
    image, names = uploaded(options.image), [str(one) for one in who]
    run = {
        "command": command(options),
        "contestants": names,
        "versions": versions(dict.fromkeys(one.name for one in who)),
        "model": {"file": str(model.relative_to(options.repository)), "sha256": sha256(model.read_bytes())},
        "image": {"bytes": len(image), "sha256": sha256(image)},
        "clients": options.clients,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    found = begun_before(options.out, run) or {"run": run, "machine": report.loaded_machine(), "done": 0, "start": {}}
    found["absent"] = {}
    asked = {str(one): [c for c in options.clients if c >= one.processes] for one in who}  # others would be idle
    samples = found.setdefault("samples", {name: {str(c): [] for c in by} for name, by in asked.items()})
    raw = found.setdefault("raw_samples", {"1": [], "16": [], "beside": []})
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (sent := scratch / "image").write_bytes(image)
        field = stack.enter_context(Field(model, options.venvs, image, scratch))
        for one in tqdm(who, desc="start"):
            try:
                field.start(one)
            except (RuntimeError, TimeoutError) as error:  # the others are worth the minutes all the same
                if one.name == OURS:
                    raise
                found["absent"][str(one)] = str(error).partition("\n")[0]
                print(f"left out: {one}: {error}", file=sys.stderr)
        names = [name for name in names if name not in found["absent"]]
        field.check()
        for name in names:  # warm: batchers and thread pools grow with what they get
            field.measure(name, max(options.clients), 1)
            found["start"].setdefault(name, {})["idle_cores"] = field.idle_cores(name, 1)
        turns = range(found["done"], options.rounds)
        progress = tqdm(total=len(turns) * sum(len(asked[name]) for name in names), desc="rounds")
        for turn in turns:
            for clients in options.clients:
                for name in rotated([name for name in names if clients in asked[name]], turn):
                    progress.set_postfix_str(f"{name}, {clients} clients")
                    samples[name][str(clients)].append(field.measure(name, clients, options.seconds))
                    progress.update()
            for batch in (1, 16):
                raw[str(batch)].append(limits.alone(model, sent, batch, options.seconds))
            if ours := reached(samples, limits.CLIENTS):
                name = max(ours, key=lambda name: ours[name])
                size = field.answer_bytes(name)
                raw["beside"].append(
                    limits.beside(model, sent, by_form(image), ours[name], size, options.seconds, scratch)
                )
            for name in names:
                first = {"ready_seconds": field.ready_seconds[name]} | found["start"][name]
                found["start"][name] = first | field.facts(name)
            found["done"] = turn + 1
            report.write(partial(options.out), json.dumps(found))
        progress.close()
    capacities = reached(samples, limits.CLIENTS)
    if options.steady and capacities and any(one == Contestant(OURS, 1) for one in who):
        found["ready_seconds"] = [ready(model) for _ in range(options.rounds)]
        found["decode_ms"] = stage_times.pixels(image, 32) / 1000
        rates = {n: capacities[name] for n in options.processes if (name := f"{OURS}-{n}") in capacities}
        found["steady_samples"] = steady.measure(model, by_form(image), rates, options.rounds, options.seconds + 1)
    found["machine"]["load_after"] = list(os.getloadavg())
    return found | summed_up(found)


def reached(samples: dict[str, Any], clients: int) -> dict[str, float]:
    """Requests a second of ours so far, by name and number of processes."""
    return {
        name: statistics.median(row["rps"] for row in by[str(clients)])
        for name, by in samples.items()
        if name.startswith(OURS) and by.get(str(clients))
    }


def summed_up(found: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds of everything that was sampled."""
    raw = found["raw_samples"]
    summary: dict[str, Any] = {
        "contestants": {
            name: {clients: medians(rows) for clients, rows in by.items() if rows}
            for name, by in found["samples"].items()
            if name not in found["absent"]
        },
        "raw_images_per_second": {batch: statistics.median(raw[batch]) for batch in ("1", "16")},
    }
    if raw["beside"]:
        summary["beside"] = medians(raw["beside"])
    if "steady_samples" in found:
        steadily = found["steady_samples"].items()
        summary["steady"] = {n: {what: medians(rows) for what, rows in by.items()} for n, by in steadily}
    return summary


def ready(model: Path) -> float:
    """Seconds until ours answers that it is ready, alone on the machine but for what else runs there."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with start(Contestant(OURS, 1), model, None, Path(folder)) as one:
            one.wait_ready()
            return time.perf_counter() - begun


def command(options: argparse.Namespace) -> str:
    """How to measure this again."""
    given = [f"--rounds {options.rounds} --seconds {options.seconds:g}"]
    if list(options.only) != [OURS, *PEERS]:
        given.insert(0, f"--only {' '.join(options.only)}")
    if options.clients != [1, 8, 32]:
        given.append(f"--clients {' '.join(map(str, options.clients))}")
    if options.processes != [1, 2]:
        given.append(f"--processes {' '.join(map(str, options.processes))}")
    given += [
        f"--{what}" for what, on in (("try-settings", options.try_settings), ("no-steady", not options.steady)) if on
    ]
    return " ".join(["python -m benchmarks.peers", *given, *(["--venvs DIR"] if options.venvs else [])])


def partial(out: Path) -> Path:
    """Where a run keeps what it has."""
    return out.with_suffix(".partial.json")


def begun_before(out: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """What a run with the same options has measured before it was broken off."""
    try:
        found: dict[str, Any] = json.loads(partial(out).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if found["run"] != run:
        print(f"{partial(out)} is of another run, and is not gone on with", file=sys.stderr)
        return None
    print(f"going on after round {found['done']} of {run['rounds']}", file=sys.stderr)
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
