"""Draws the dashboard from Prometheus, by the dashboard's own expressions.

Not a rendering by Grafana: the same queries, titles, units, colours and thresholds, laid out by matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from deploy.grafana.panels import EXPECTED, ROWS, STATUSES, Panel

from ..harness.prometheus import Prometheus, substitute

GRAPHS = (
    "Verdicts",
    "Flagged, against what the thresholds were set to flag",
    "CUSUM of flagged images",
    "Omega drift, by block",
    "Score drift",
    "Requests by status",
    "Seconds of a prediction",
    "Uncalibrated images",
    "Golden probes",
)
DARK, PAPER, INK, FAINT = "#111217", "#181b1f", "#d8d9da", "#34373e"
TILES = {"green": "#1a7f37", "orange": "#b35900", "red": "#c4162a"}
LINES = ("#5794f2", "#b877d9", "#f2cc0c", "#37c8c0", "#8ab8ff", "#ff7fb2", "#c0d8ff", "#a8a29e")
COLOURS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "light-orange": "#ffcb7d", "light-red": "#ff9aa5"}
BAND = "#f2495c"
Report = dict[str, Any]


def shown(value: float, unit: str) -> str:
    """A number as the panel's unit has it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %" if abs(value) < 100 else f"{value:.0f}x"
    if unit == "s":
        return f"{1000 * value:.3g} ms"
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.3g}"


def colour(panel: Panel, value: float) -> str:
    """The colour of the highest step that `value` has reached."""
    found = "red" if panel.falls else "green"
    for step, name in panel.steps:
        if value >= step:
            found = name
    return found


def tiles(prometheus: Prometheus, at: float, begun: float, interval: str) -> dict[str, float]:
    """Title -> value of the first row at a moment; a tile without an answer is left out.

    Args:
        at, begun: Unix seconds; the chosen time of the dashboard is what lies between.
        interval: what `$__rate_interval` stands for.
    """
    values = {}
    for panel in ROWS["Status"]:
        expression = substitute(panel.queries[0].expr, interval, f"{max(1, round(at - begun))}s")
        found = prometheus.query(expression, time=at)
        if found and (value := float(found[0]["value"][1])) == value:
            values[panel.title] = float(f"{value:.4g}")
    return values


def dashboard(prometheus: Prometheus, report: Report, out: Path) -> None:
    """The first row at the attack's last second, and graphs over the whole time."""
    panels = {panel.title: panel for row in ROWS.values() for panel in row}
    minutes = report["phases"][-1]["ends"] / 60
    with _figure(13.5, 10.4, out) as figure:
        from matplotlib.gridspec import GridSpec

        figure.text(0.045, 0.972, "AW-Net server", fontsize=17, weight="bold")
        moment = report["moments"][3]
        figure.text(
            0.965,
            0.974,
            f"first row: at {moment['at'] / 60:.1f} min;  bands: the two staged attacks.  Drawn by matplotlib from the "
            "dashboard's queries, not by Grafana",
            fontsize=10,
            ha="right",
            color="#9fa3a9",
        )
        top = GridSpec(1, len(ROWS["Status"]), figure, top=0.925, bottom=0.845, left=0.045, right=0.985, wspace=0.09)
        for n, panel in enumerate(ROWS["Status"]):
            axes = figure.add_subplot(top[0, n])
            axes.set_title(panel.title, fontsize=10.5, loc="left")
            _tile(axes, panel, moment["first_row"].get(panel.title), 20)
        rest = GridSpec(3, 3, figure, top=0.785, bottom=0.045, left=0.045, right=0.985, hspace=0.42, wspace=0.13)
        for n, title in enumerate(GRAPHS):
            axes = figure.add_subplot(rest[n])
            _graph(axes, panels[title], prometheus, report)
            axes.set_xlim(0, minutes)
            axes.tick_params(labelbottom=n >= 6)
            if n >= 6:
                axes.set_xlabel("minutes", fontsize=9)


def on_call(report: Report, out: Path) -> None:
    """The first row at five moments, and below when each alert was pending, firing and told."""
    moments, phases = report["moments"], report["phases"]
    names = list(dict.fromkeys(name for name, _, _, ends in report["states"] if ends > 60))
    end = phases[-1]["ends"]
    with _figure(13.5, 3.13 + 0.74 * len(moments) + 0.34 * len(names), out) as figure:
        from matplotlib.gridspec import GridSpec

        height = figure.get_size_inches()[1]
        split = (1.83 + 0.34 * len(names)) / height  # where the tiles end and the alerts begin
        top = GridSpec(
            len(moments), len(ROWS["Status"]), figure, top=1 - 0.92 / height, bottom=split + 0.3 / height, left=0.17,
            right=0.975, wspace=0.06, hspace=0.14,
        )  # fmt: skip
        figure.text(0.012, 1 - 0.38 / height, "The first row of the dashboard", fontsize=15, weight="bold")
        for k, moment in enumerate(moments):
            for n, panel in enumerate(ROWS["Status"]):
                axes = figure.add_subplot(top[k, n])
                _tile(axes, panel, moment["first_row"].get(panel.title), 16)
                if k == 0:
                    axes.set_title(panel.title, fontsize=9.8)
                if n == 0:
                    caption = textwrap.fill(moment["name"], 23) + f"\n{_clock(moment['at'], report)} in the hour"
                    axes.text(-0.1, 0.5, caption, transform=axes.transAxes, ha="right", va="center", fontsize=10)
        below = GridSpec(1, 1, figure, top=split - 1.18 / height, bottom=0.6 / height, left=0.17, right=0.975)
        axes = figure.add_subplot(below[0, 0])
        figure.text(0.012, split - 0.35 / height, "The alerts", fontsize=15, weight="bold")
        axes.set_facecolor(PAPER)
        for name, state, begins, ends in report["states"]:
            if name in names:
                y = len(names) - names.index(name)
                face = COLOURS["red"] if state == "firing" else COLOURS["orange"]
                axes.barh(
                    y, ends - begins, left=begins, height=0.62, color=face, alpha=1 if state == "firing" else 0.75
                )
        for begins, key in ((phases[1]["begins"], "since_the_small_attack"), (phases[3]["begins"], "since_the_attack")):
            for name, times in report[key].items():
                for state in ("webhook_firing", "webhook_resolved"):
                    if name in names and state in times:
                        y = len(names) - names.index(name)
                        axes.plot(begins + times[state], y, "v", color="white", markersize=7, markeredgecolor="black")
        _bands(axes, report, 1.0)
        for n, phase in enumerate(phases):
            middle = (phase["begins"] + phase["ends"]) / 2
            text = phase["name"] + (f", {100 * phase['share']:g}\u00a0%" if phase["share"] else "")
            wrapped = textwrap.fill(text, 11 if phase["ends"] - phase["begins"] < 100 else 40)
            axes.text(middle, len(names) + 0.72, wrapped, ha="center", va="bottom", fontsize=10,
                      color=BAND if phase["share"] else INK)  # fmt: skip
            if n:
                axes.axvline(phase["begins"], color=FAINT, linewidth=1)
        axes.set_yticks(range(len(names), 0, -1), [name.removeprefix("AWNet") for name in names], fontsize=10.5)
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.set_xlim(0, end)
        ticks = range(0, int(end) + 1, 75)
        axes.set_xticks(ticks, [f"{_clock(t, report)}\n{t} s" for t in ticks], fontsize=9)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        figure.text(
            0.985, split - 0.35 / height, "orange: pending    red: firing    triangle: the webhook was told",
            fontsize=10, ha="right", color="#9fa3a9",
        )  # fmt: skip


def _clock(seconds: float, report: Report) -> str:
    staged = seconds * report["faster"]
    return f"{int(staged // 60):02d}:{int(staged % 60):02d}"


@contextmanager
def _figure(width: float, height: float, out: Path) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dark = {name: INK for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")}
    with pyplot.rc_context({**dark, "axes.edgecolor": FAINT}):
        figure = pyplot.figure(figsize=(width, height), facecolor=DARK)
        yield figure
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=88, facecolor=DARK, metadata={"Software": None})
        pyplot.close(figure)
    # Fewer colours: a third of the bytes, and nobody sees it in flat panels.
    with Image.open(out) as image:
        smaller = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    smaller.save(out, optimize=True)


def _tile(axes: Any, panel: Panel, value: float | None, size: float) -> None:
    axes.set_facecolor(FAINT if value is None else TILES[colour(panel, value)])
    axes.set_xticks([])
    axes.set_yticks([])
    text = "no data" if value is None else shown(value, panel.unit)
    axes.text(0.5, 0.47, text, ha="center", va="center", fontsize=size if value is not None else 11, color="white")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bands(axes: Any, report: Report, scale: float) -> None:
    for phase in report["phases"]:
        if phase["share"]:
            axes.axvspan(phase["begins"] / scale, phase["ends"] / scale, color=BAND, alpha=0.13, linewidth=0)


def _lines(
    panel: Panel, prometheus: Prometheus, report: Report, scale: float
) -> Iterator[tuple[str, list[float], list[float]]]:
    """(name, minutes, values) of each line of a panel."""
    begun, end = report["begun"], report["phases"][-1]["ends"]
    for query in panel.queries:
        expression = substitute(query.expr, f"{4 * report['interval_seconds']:g}s", "5m")
        for series in prometheus.over(expression, begun, begun + end, max(1.0, end / 300)):
            points = [(t, float(v)) for t, v in series["values"] if v != "NaN"]
            yield (
                query.named(series["metric"]) or panel.title.lower(),
                [(t - begun) / 60 for t, _ in points],
                [scale * v for _, v in points],
            )


def _colour_of(panel: Panel, name: str, others: Iterator[str]) -> str:
    fixed = panel.colours().get(name) or (STATUSES.get(name[:1]) if panel.of_statuses else None)
    return COLOURS[fixed] if fixed else next(others)


def _graph(axes: Any, panel: Panel, prometheus: Prometheus, report: Report) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(panel.title, fontsize=10.5, loc="left", pad=22)
    scale = {"percentunit": 100.0, "s": 1000.0}.get(panel.unit, 1.0)
    lines = sorted(_lines(panel, prometheus, report, scale))
    others = iter(LINES * 3)
    if panel.kind == "share":
        _stack(axes, panel, {name: dict(zip(times, values, strict=True)) for name, times, values in lines})
        axes.set_ylim(0, 100)
    else:
        highest = 0.0
        for name, times, values in lines:
            dashed = "--" if name.startswith(EXPECTED) else "-"
            axes.plot(times, values, dashed, color=_colour_of(panel, name, others), linewidth=1.3, label=name)
            highest = max([highest, *values])
        axes.set_ylim(0, 1.08 * highest or 1)
        for step, name in panel.steps:
            if axes.get_ylim()[1] >= scale * step:
                axes.axhline(scale * step, color=COLOURS[name], linestyle=":", linewidth=1.1)
    if scale == 100 or panel.kind == "share":
        axes.yaxis.set_major_formatter("{x:g} %")
    else:
        axes.set_title({"s": "ms", "reqps": "requests/s"}.get(panel.unit, ""), fontsize=9, loc="right", pad=22)
    _bands(axes, report, 60)
    axes.tick_params(labelsize=9)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    if len(lines) > 1:
        axes.legend(
            *_legend(axes), fontsize=8.5, loc="lower left", bbox_to_anchor=(-0.01, 0.985), frameon=False,
            labelcolor=INK, ncols=4, columnspacing=1.1, handlelength=1.3, handletextpad=0.5, borderaxespad=0.1,
        )  # fmt: skip


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    """Handles and names, four at most, so that they fit over the graph; the first dashed line speaks for all."""
    found, dashed = [], False
    for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
        expected = name.startswith(EXPECTED)
        if not (expected and dashed):
            found.append((handle, name.partition(",")[0] if expected else name))
        dashed = dashed or expected
    if len(found) > 4:
        found = [*found[:3], (found[3][0], f"... {len(found)} in all")]
    return [handle for handle, _ in found], [name for _, name in found]


def _stack(axes: Any, panel: Panel, table: Mapping[str, Mapping[float, float]]) -> None:
    """Areas that add up to 100 %."""
    colours = panel.colours()
    names = [name for name in colours if name in table]
    common = sorted({t for values in table.values() for t in values})
    rows = [[table[name].get(t, 0.0) for t in common] for name in names]
    totals = [sum(column) or 1.0 for column in zip(*rows, strict=True)]
    stacked = [[100 * v / total for v, total in zip(row, totals, strict=True)] for row in rows]
    axes.stackplot(common, stacked, labels=names, colors=[COLOURS[colours[name]] for name in names], alpha=0.8)
