"""What promtool and a live Prometheus say. Needs prometheus.

Two servers with the tests' tiny model, one of them behind a Triton that is a fake (its metrics are a recording of a
real one), are under the tests' mixed load while Prometheus scrapes them every second. Every query of the dashboard is
asked; every case of deploy/prometheus/cases.py goes through `promtool test rules`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.grafana.panels import ANNOTATIONS, queries
from deploy.prometheus.cases import CASES, HEALTHY, judge, promtool
from tests.observability.conftest import Stack, live

from ..harness.prometheus import substitute
from ..harness.report import RESULTS, ROOT, parser, publish
from ..harness.waiting import eventually

EXAMPLES = """examples:
  python -m benchmarks.monitoring.prometheus    two minutes; writes benchmarks/results/prometheus.md
"""
PROMETHEUS = ROOT / "deploy/prometheus"
SPAN_SECONDS = 30


def checked(*command: str, stdin: str | None = None, folder: Path = PROMETHEUS) -> dict[str, Any]:
    """A command of promtool: what it said and how it ended."""
    done = subprocess.run(["promtool", *command], input=stdin, capture_output=True, text=True, timeout=120, cwd=folder)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    source = " < metrics" if stdin is not None else ""
    return {"command": "promtool " + " ".join(command) + source, "exit": done.returncode, "said": lines}


def asked(stack: Stack) -> list[dict[str, Any]]:
    """Every query of the dashboard: how many series now, and how many points over the last half minute."""
    answers = []
    everything = [*queries(), *(("Annotations", name, expr) for name, expr, _, _ in ANNOTATIONS)]
    for row, title, query in everything:
        expr = query if isinstance(query, str) else query.expr
        expression = substitute(expr, "10s", f"{SPAN_SECONDS}s")
        now = time.time()
        found = stack.prometheus.query(expression)
        over = stack.prometheus.over(expression, now - SPAN_SECONDS, now, 1)
        points = sum(value != "NaN" for series in over for _, value in series["values"])
        answers.append({"row": row, "panel": title, "expression": expr, "series": len(found), "points": points})
    return answers


def cases() -> list[dict[str, Any]]:
    """Every case of the alerts, as promtool judges it; an AssertionError with its words where one fails."""
    judged = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            verdict = judge(case, Path(folder)).split()[-1]
            minutes = {"quiet": case.quiet, "pending": case.pending, "firing": case.firing}
            judged.append({"alert": case.alert, "labels": case.labels, **minutes, "promtool": verdict})
        minutes_at_rest = list(range(20, 600, 20))
        checks = [{"expr": "ALERTS", "eval_time": f"{minute}m", "exp_samples": []} for minute in minutes_at_rest]
        verdict = promtool(Path(folder), HEALTHY, checks).split()[-1]
        healthy = {"alert": "all of them", "labels": "a healthy server", "quiet": minutes_at_rest}
        judged.append({**healthy, "pending": [], "firing": [], "promtool": verdict})
    return judged


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# What promtool and a live Prometheus say",
        "",
        f"Made by `python -m benchmarks.monitoring.prometheus` with {report['version']}; what is under load "
        "stands at the",
        "top of that file. Grafana itself rendered nothing here: none could be installed.",
        "",
        "## Checks",
        "",
        "`metrics` is what a server under load exposes; the other commands run in `deploy/prometheus/`.",
        "",
        "```console",
    ]
    for check in report["checks"]:
        lines += [f"$ {check['command']}", *(check["said"] or ["(no finding)"]), f"(exit status {check['exit']})", ""]
    lines[-1] = "```"
    lines += [
        "",
        "## Unit tests of the alerts (`promtool test rules`)",
        "",
        "Minutes at which the alert must be in that state. The samples are in `deploy/prometheus/cases.py`, one",
        "a minute; what a case does not change is a healthy server.",
        "",
        "| alert | of it | at rest | pending | firing | promtool |",
        "|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        minutes = [_minutes(case[state]) for state in ("quiet", "pending", "firing")]
        lines.append(f"| {case['alert']} | {case['labels']} | " + " | ".join(minutes) + f" | {case['promtool']} |")
    answered = sum(answer["points"] > 0 for answer in report["answers"])
    lines += [
        "",
        "## The dashboard's queries, asked of a live Prometheus",
        "",
        f"{answered} of {len(report['answers'])} have an answer. Series: now; points: over the last {SPAN_SECONDS} s "
        "at a step of 1 s, NaN left out.",
        "`$job`, `$instance` and `$model` stand for everything, `$__rate_interval` for 10 s, `$__range` for "
        f"{SPAN_SECONDS} s.",
        "Just before, one version was reloaded, for the annotation.",
        "",
        "| row | panel | expression | series | points |",
        "|---|---|---|---|---|",
    ]
    for answer in report["answers"]:
        expression = answer["expression"].replace("|", "\\|")
        lines.append(
            f"| {answer['row']} | {answer['panel']} | `{expression}` | {answer['series']} | {answer['points']} |"
        )
    return "\n".join(lines) + "\n"


def _minutes(at: list[int]) -> str:
    return ", ".join(map(str, at)) if len(at) < 10 else f"{at[0]} to {at[-1]}, every {at[1] - at[0]}"


def main() -> int:
    parser("monitoring.prometheus", __doc__, EXAMPLES).parse_args()
    version = subprocess.run(["promtool", "--version"], capture_output=True, text=True)
    number = (version.stdout + version.stderr).split("version ")[1].split(",")[0].split()[0]
    with tempfile.TemporaryDirectory(prefix="awnet-report-") as folder, live(Path(folder)) as stack:
        stack.reload()
        eventually(lambda: stack.prometheus.query('ALERTS{alertstate="firing"}'))  # one in six is attacked
        answers = asked(stack)
        exposition = stack.server.http.get("/metrics").text
    rules = sorted(str(path.relative_to(PROMETHEUS)) for path in PROMETHEUS.glob("rules/*.yml"))
    checks = [
        checked("check", "metrics", stdin=exposition),
        checked("check", "config", "prometheus.yml"),
        checked("check", "rules", "--lint=all", "--lint-fatal", *rules),
    ]
    report = {"version": f"promtool {number}", "checks": checks, "cases": cases(), "answers": answers}
    publish(RESULTS / "prometheus", report, markdown(json.loads(json.dumps(report))))
    empty = [answer["panel"] for answer in answers if not answer["points"]]
    failed = [check["command"] for check in checks if check["exit"]]
    for fault in [*empty, *failed]:
        print(f"at fault: {fault}", file=sys.stderr)
    return 1 if empty or failed else 0


if __name__ == "__main__":
    sys.exit(main())
