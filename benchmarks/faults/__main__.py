"""The fault table: what callers see while parts of a deployment are killed, stopped, overloaded or given bad models.

Each scenario starts real processes on this machine (replicas, haproxy with `deploy/haproxy.cfg`, Triton from its
wheel), sends steady traffic in which every answer is compared with the one before the fault, does the damage, and
judges goals that were set beforehand. A goal that is missed is printed as missed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..harness.dead_mount import possible
from ..harness.report import ROOT, add_out, machine, publish
from ..harness.report import parser as parser_of
from .scenarios import SCENARIOS as DEPLOYMENTS
from .scenarios import Bench
from .server_faults import SERVER_FAULTS
from .surroundings import FAKETIME, SURROUNDINGS

EXAMPLES = """examples:
  python -m benchmarks.faults                                  all scenarios, about 15 minutes
  python -m benchmarks.faults rolling --restarts 10            one of them, shorter
  python -m benchmarks.faults overload reload --seconds 10 --out /tmp/faults
  python -m benchmarks.faults --list

A scenario whose programs are missing is reported as not run, with the command that brings them. A run of some
scenarios keeps what the file says about the others.
"""
INSTALL = {
    "haproxy": "apt-get install haproxy",
    "triton": "make .venv-triton/.locked",
    "libfaketime": "apt-get install faketime",
    "root": "run it as root with /dev/fuse",
}
SCENARIOS = DEPLOYMENTS | SERVER_FAULTS | SURROUNDINGS


def main() -> int:
    parser = parser_of("faults", __doc__, EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="scenario", help=f"{', '.join(SCENARIOS)} [all]")
    parser.add_argument("--list", action="store_true", help="say what each scenario does")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--restarts", type=int, default=50, help="of `rolling` [50]")
    parser.add_argument("--kills", type=int, default=20, help="of `kill` [20]")
    parser.add_argument("--rounds", type=int, default=5, help="of the Triton faults [5]")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each overload [60]")
    venv = Path(os.environ.get("AWNET_TRITON_VENV") or ROOT / ".venv-triton")
    parser.add_argument(
        "--triton-venv", type=Path, default=venv, help="environment with the real Triton [.venv-triton]"
    )
    parser.add_argument("--requests", type=int, default=100_000, help="of the soak, at most [100000]")
    parser.add_argument("--soak-seconds", type=float, default=600.0, help="of it, at most [600]")
    parser.add_argument("--limit-seconds", type=float, default=900.0, help="after which a scenario is given up [900]")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what the file has already of this machine today"
    )
    add_out(parser, "faults")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave logs and copies there")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if options.list:
        for name, (scenario, _) in SCENARIOS.items():
            print(f"{name:14s} {(scenario.__doc__ or '').strip().splitlines()[0]}")
        return 0
    report = _previous(options.out.with_suffix(".json"))
    for name in options.names or SCENARIOS:
        if options.resume and report.get(name, {}).get("machine", {}).get("date") == time.strftime("%Y-%m-%d"):
            continue
        report[name] = run(name, options)
        ordered = {name: report[name] for name in SCENARIOS if name in report}
        publish(options.out, ordered, markdown(ordered))
        print(markdown({name: report[name]}).partition("\n## ")[2], flush=True)
    return 0 if all(report.get(name, {}).get("met") for name in options.names or SCENARIOS) else 1


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One scenario's entry of the report."""
    scenario, needs = SCENARIOS[name]
    load = round(os.getloadavg()[0], 1)
    entry: dict[str, Any] = {"machine": machine(date=time.strftime("%Y-%m-%d"), load=load)}
    if absent := [need for need in needs if not _present(need, options.triton_venv)]:
        return entry | {"not_run": "; ".join(f"no {need}: {INSTALL[need]}" for need in absent), "met": None}
    print(f"== {name}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="awnet-faults-") as scratch:
        folder = options.keep / name if options.keep else Path(scratch)
        shutil.rmtree(folder, ignore_errors=bool(options.keep))
        folder.mkdir(parents=True)
        bench = Bench(
            folder,
            options.repository,
            restarts=options.restarts,
            kills=options.kills,
            seconds=options.seconds,
            rounds=options.rounds,
            requests=options.requests,
            soak_seconds=options.soak_seconds,
            triton_venv=options.triton_venv,
        )
        try:
            result = asyncio.run(asyncio.wait_for(scenario(bench), options.limit_seconds))
        except (RuntimeError, TimeoutError, OSError) as error:
            # A rig that fails is no result: it is told as what it is, and no goal is met.
            return entry | {"failed": f"{type(error).__name__}: {error}"[:2000], "met": False}
    return entry | {
        "what": result.what,
        "seconds": round(time.monotonic() - begun, 1),
        "figures": result.figures,
        "goals": [{"goal": goal, "measured": measured, "met": met} for goal, measured, met in result.goals],
        "met": all(met for _, _, met in result.goals),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = ["# Faults", "", "Made by `python -m benchmarks.faults`; the JSON beside this file has every figure.", ""]
    lines += ["| row | goals met | machine |", "|---|---|---|", *(_row(name, entry) for name, entry in report.items())]
    for name, entry in report.items():
        lines += ["", f"## {name}", ""]
        if "not_run" in entry:
            lines += [f"Not run: {entry['not_run']}."]
            continue
        if "failed" in entry:
            lines += ["Could not be judged:", "", "```", entry["failed"], "```"]
            continue
        taken_on = entry["machine"]
        where = f"{taken_on['cores']} core(s) of {taken_on['cpu']}{_when(taken_on)}"
        lines += [f"{entry['what']}. {entry['seconds']:.0f} s on {where}.", ""]
        lines += ["| goal | measured | |", "|---|---|---|"]
        lines += [
            f"| {goal['goal']} | {goal['measured']} | {'met' if goal['met'] else '**missed**'} |"
            for goal in entry["goals"]
        ]
        figures = [f"{key}: {_plain(value)}" for key, value in entry["figures"].items() if not isinstance(value, dict)]
        lines += ["", "; ".join(figures) + "." if figures else ""]
        nested = {key: value for key, value in entry["figures"].items() if isinstance(value, dict)}
        lines += [f"- {key}: {_plain(value)}" for key, value in nested.items()]
        lines += ["", entry["note"]] if "note" in entry else []
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, entry: dict[str, Any]) -> str:
    met = [goal["met"] for goal in entry.get("goals", ())]
    verdict = "not run" if "not_run" in entry else f"{sum(met)} of {len(met)}" if met else "could not be judged"
    return f"| [{name}](#{name}) | {verdict} | {_when(entry['machine']).strip(', ')} |"


def _when(taken_on: dict[str, Any]) -> str:
    """How busy the machine was, where that is known; times are then those of a machine that others used."""
    busy = f", load {taken_on['load']:g} before" if "load" in taken_on else ""
    return f"{busy}, {taken_on['date']}" if "date" in taken_on else busy


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _present(need: str, triton_venv: Path) -> bool:
    if need == "root":
        return possible()
    if need == "libfaketime":
        return FAKETIME.exists()
    if need == "triton":
        return any(triton_venv.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"))
    return shutil.which(need) is not None


def _previous(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


if __name__ == "__main__":
    sys.exit(main())
