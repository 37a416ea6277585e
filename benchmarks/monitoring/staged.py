"""What was to be seen of a staged attack: asked of Prometheus afterwards, and told to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.grafana.panels import ROWS, Panel

from ..harness.prometheus import Prometheus, substitute
from .draw_dashboard import shown, tiles

SMALL, LARGE = 1, 3  # which phases are attacks
STEP_SECONDS = 30
STATES = ("pending", "firing", "webhook_firing", "resolved", "webhook_resolved")


def seen_by_prometheus(prometheus: Prometheus, noted: dict[str, Any]) -> dict[str, Any]:
    """The rest of the report.

    Args:
        prometheus: has the data of the run.
        noted: what `monitoring.alerts` wrote down: `begun` in Unix seconds, everything else in seconds since then.
    """
    begun, phases, events = noted["begun"], noted["phases"], noted["events"]
    small, large, end = phases[SMALL], phases[LARGE], phases[-1]["ends"]
    interval = f"{4 * noted['interval_seconds']:g}s"

    def first_row(at: float) -> dict[str, float]:
        return tiles(prometheus, begun + at, begun, interval)

    moments = [
        ("everyday traffic", small["begins"] - 1),
        ("the small attack, its last second", small["ends"] - 1),
        ("the attack, 30 s old", large["begins"] + 30),
        ("the attack, its last second", large["ends"] - 1),
        ("four minutes after it", large["ends"] + 240),
    ]
    return {
        "since_the_small_attack": _since(events, small["begins"], large["begins"]),
        "since_the_attack": _since(events, large["begins"], end),
        "states": _states(prometheus, begun, end),
        "first_row": [{"at": at, **first_row(at)} for at in range(STEP_SECONDS, int(end), STEP_SECONDS)],
        "moments": [
            {
                "name": name,
                "at": round(at, 1),
                "first_row": first_row(at),
                "panels": {
                    panel.title: _panel(prometheus, panel, begun + at, interval, f"{max(1, round(at))}s")
                    for row, panels in ROWS.items()
                    if row != "Status"
                    for panel in panels
                    if panel.kind != "heatmap"
                },
            }
            for name, at in moments
        ],
    }


def _since(events: Sequence[Sequence[Any]], begins: float, ends: float) -> dict[str, dict[str, float]]:
    """Alert -> state -> seconds after `begins`: the first time of each, but of resting the last.

    An alert of several series rests when the last of them does.
    """
    found: dict[str, dict[str, float]] = {}
    for at, name, state in events:
        if begins <= at < ends:
            times = found.setdefault(name, {})
            if state.endswith("resolved"):
                times[state] = round(at - begins, 1)
            else:
                times.setdefault(state, round(at - begins, 1))
    return dict(sorted(found.items()))


def _states(prometheus: Prometheus, begun: float, end: float) -> list[list[Any]]:
    """[alert, state, from, to] in seconds since `begun`, as the series ALERTS has it."""
    step = 5.0
    spans = []
    for series in prometheus.over("max by (alertname, alertstate) (ALERTS)", begun, begun + end, step):
        name, state = series["metric"]["alertname"], series["metric"]["alertstate"]
        times = [t - begun for t, _ in series["values"]]
        first = last = times[0]
        for t in [*times[1:], float("inf")]:
            if t - last > 1.5 * step:
                spans.append([name, state, round(first, 1), round(last + step, 1)])
                first = t
            last = t
    return sorted(spans, key=lambda span: (span[2], span[0]))


def _panel(prometheus: Prometheus, panel: Panel, at: float, interval: str, span: str) -> dict[str, float]:
    """Name of a line -> its value at a moment."""
    values = {}
    for query in panel.queries:
        for sample in prometheus.query(substitute(query.expr, interval, span), time=at):
            value = float(sample["value"][1])
            if value == value:
                values[query.named(sample["metric"])] = float(f"{value:.4g}")
    return dict(sorted(values.items()))


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    faster, phases = report["faster"], report["phases"]
    minutes = phases[-1]["ends"] / 60

    def clock(seconds: float) -> str:
        """The moment in the hour that was staged."""
        return f"{int(seconds * faster // 60):02d}:{int(seconds * faster % 60):02d}"

    lines = [
        "# A staged attack, and what somebody on call sees of it",
        "",
        "Made by `python -m benchmarks.monitoring.alerts`; how stands at the top of that file. Everything ran on "
        "the loopback of",
        "one machine, which other work was using as well.",
        "",
        f"- An hour of mixed traffic in {minutes:.0f} minutes: {report['rate']:g} images a second, {faster} times as",
        f"  fast as {report['rate'] / faster:g} a second would be. {100 * report['other_share']:g} % are honest "
        f"images that were {report.get('other', 'scaled or lossily compressed')},",
        f"  {100 * report['broken_share']:g} % are broken uploads.",
        f"- Images: {report['images']}.",
        "  T0 means that the attacker had other networks only.",
        f"- Model: the bundled one, of checkpoint `{report['checkpoint_sha256'][:12]}`.",
        f"- Prometheus {report['prometheus']} scrapes and evaluates every {report['interval_seconds']:g} s; rules as "
        "committed, nothing in them is faster;",
        f"  Alertmanager {report['alertmanager']}.",
        "",
        "![The first row of the dashboard at five moments, and when each alert was pending and firing]"
        "(../../docs/images/on-call.png)",
        "",
        "## The hour",
        "",
        "| in the hour | second | what is sent | attacked | sent: clean | other honest | attacked | broken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for phase in phases:
        sent = phase["sent"]
        lines.append(
            f"| {clock(phase['begins'])} | {phase['begins']:.0f} to {phase['ends']:.0f} | {phase['name']} | "
            f"{100 * phase['share']:g} % | {sent['clean']} | {sent['other']} | {sent['examples'] + sent['attacked']} | "
            f"{sent['broken']} |"
        )
    for title, key in (("small attack", "since_the_small_attack"), ("attack", "since_the_attack")):
        phase = phases[SMALL if key == "since_the_small_attack" else LARGE]
        lines += [
            "",
            f"## Who was told of the {title}, and when",
            "",
            f"Seconds after the first attacked image could have been sent; the {title} lasted "
            f"{phase['ends'] - phase['begins']:.0f} s and {100 * phase['share']:g} % of the images.",
            "",
            "| alert | pending | firing | webhook told | resting again | webhook told |",
            "|---|---|---|---|---|---|",
        ]
        for name, times in report[key].items():
            lines.append(f"| {name} | " + " | ".join(str(times.get(state, "")) for state in STATES) + " |")
        if not report[key]:
            lines.append("| none | | | | | |")
    lines += [
        "",
        "Alerts and webhook were looked at a few times a second, so one may seem to have heard before the other fired.",
        "",
        "AWNetAdversarialCusum waits for nothing (`for: 0m`), so it is never pending; it fires once for each of the",
        "two thresholds, which the tile *Alerts firing* counts as two. The two alerts on shares look at five minutes,",
        "so they rest only when the attack has left that window. AWNetOmegaShift and AWNetScoreShift wait for ten",
        "minutes, which pass no faster here: what stays pending would fire in an attack of that length.",
        "",
        "## What the first row said",
        "",
        "The tiles of the dashboard's first row, from the queries of `deploy/grafana/panels.py`.",
        "",
    ]
    lines += _first_row(report, clock)
    lines += [
        "",
        "## What every other panel said",
        "",
        "The heat map of scores is left out, and so are panels without an answer: there was no canary release, no",
        "shadow and no Triton.",
        "",
        "| panel | " + " | ".join(f"{m['name']} ({m['at']:.0f} s)" for m in report["moments"]) + " |",
        "|---|" + "---|" * len(report["moments"]),
    ]
    for row, panels in ROWS.items():
        if row == "Status":
            continue
        for panel in panels:
            cells = [moment["panels"].get(panel.title, {}) for moment in report["moments"]]
            if any(cells):
                lines.append(f"| {panel.title} | " + " | ".join(_cell(cell, panel.unit) for cell in cells) + " |")
    lines += ["", "![The dashboard's panels over the hour](../../docs/images/dashboard.png)"]
    return "\n".join(lines) + "\n"


def _first_row(report: dict[str, Any], clock: Any) -> list[str]:
    panels = ROWS["Status"]
    lines = [
        "| in the hour | second | " + " | ".join(panel.title for panel in panels) + " | firing |",
        "|---|---|" + "---|" * (len(panels) + 1),
    ]
    for sample in report["first_row"]:
        at = sample["at"]
        firing = sorted(
            {name for name, state, begins, ends in report["states"] if state == "firing" and begins <= at < ends}
        )
        cells = [shown(sample[panel.title], panel.unit) if panel.title in sample else "" for panel in panels]
        names = ", ".join(name.removeprefix("AWNet") for name in firing)
        lines.append(f"| {clock(at)} | {at} | " + " | ".join(cells) + f" | {names} |")
    return lines


def _cell(values: dict[str, float], unit: str) -> str:
    """The lines of a panel in one cell; many of them as their range."""
    if not values:
        return "-"
    if len(values) > 5:
        return f"{len(values)} lines, {shown(min(values.values()), unit)} to {shown(max(values.values()), unit)}"
    return "<br>".join(
        f"{name}: {shown(value, unit)}" if name else shown(value, unit) for name, value in values.items()
    )
