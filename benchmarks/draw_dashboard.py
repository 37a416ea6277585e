"""Draws some panels of the dashboard from a live Prometheus, by the dashboard's own expressions.

Not a rendering by Grafana: the same queries, titles, units and colours, laid out by matplotlib.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.observed import Prometheus, substitute
from deploy.grafana.panels import COLOURS, ROWS, Panel

GRAPHS = (
    "Verdicts",
    "Flagged, against what the thresholds were set to flag",
    "CUSUM of flagged images",
    "Omega drift, by block",
    "Score drift",
    "Canaries",
    "Requests by status",
    "Seconds of a prediction",
    "Where the time goes",
)
DARK, PAPER, INK = "#181b1f", "#22252b", "#d8d9da"
TILES = {"green": "#1a7f37", "orange": "#b35900", "red": "#b3261e"}
LINES = ("#5794f2", "#f2cc0c", "#b877d9", "#73bf69", "#ff9830", "#f2495c", "#8ab8ff", "#c0d8ff", "#ffcb7d", "#96d98d")
LINE_COLOURS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}


def draw(
    prometheus: Prometheus,
    out: Path,
    start: float,
    end: float,
    *,
    tiles_at: float,
    attack: tuple[float, float],
    interval: str,
) -> None:
    """Write a PNG.

    Args:
        start, end: of the graphs; Unix seconds, as all times here.
        tiles_at: the moment that the tiles of the first row show.
        attack: drawn as a band.
        interval: what `$__rate_interval` stands for.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.gridspec import GridSpec

    panels = {panel.title: panel for row in ROWS.values() for panel in row}
    tiles = ROWS["Status"]
    with pyplot.rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = pyplot.figure(figsize=(16, 10), facecolor=DARK)
        top = GridSpec(1, len(tiles), figure, top=0.93, bottom=0.86, left=0.04, right=0.99, wspace=0.12)
        rest = GridSpec(3, 3, figure, top=0.80, bottom=0.06, left=0.04, right=0.99, hspace=0.5, wspace=0.14)
        for n, panel in enumerate(tiles):
            _tile(figure.add_subplot(top[0, n]), panel, prometheus, tiles_at, interval, start)
        for n, title in enumerate(GRAPHS):
            _graph(figure.add_subplot(rest[n]), panels[title], prometheus, start, end, attack, interval)
        when = datetime.fromtimestamp(tiles_at, UTC).strftime("%H:%M:%S")
        figure.suptitle(
            f"AW-Net server: a staged attack. First row as at {when} UTC; the band is the attack. Drawn by matplotlib "
            "from the dashboard's queries, not by Grafana.",
            fontsize=11,
            y=0.985,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=75, facecolor=DARK, metadata={"Software": None})
        pyplot.close(figure)
    _shrink(out)


def _shrink(file: Path) -> None:
    """Fewer colours: a third of the bytes, and nobody sees it in flat panels."""
    with Image.open(file) as image:
        smaller = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    smaller.save(file, optimize=True)


def shown(value: float, unit: str) -> str:
    """A number as the panel's unit has it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %" if abs(value) < 100 else f"{value:.0f}x"
    if unit == "s":
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g}"


def colour(panel: Panel, value: float) -> str:
    """The colour of the highest step that `value` has reached."""
    found = "red" if panel.falls else "green"
    for step, name in panel.steps:
        if value >= step:
            found = name
    return found


def _tile(axes: Any, panel: Panel, prometheus: Prometheus, at: float, interval: str, start: float) -> None:
    found = prometheus.query(substitute(panel.queries[0].expr, interval, f"{max(1, round(at - start))}s"), time=at)
    value = float(found[0]["value"][1]) if found else float("nan")
    axes.set_facecolor(TILES[colour(panel, value)])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.text(0.5, 0.5, shown(value, panel.unit), ha="center", va="center", fontsize=19, color="white")


def _graph(
    axes: Any,
    panel: Panel,
    prometheus: Prometheus,
    start: float,
    end: float,
    attack: tuple[float, float],
    interval: str,
) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(panel.title, fontsize=10, loc="left")
    scale = {"percentunit": 100.0, "s": 1000.0}.get(panel.unit, 1.0)
    lines: list[tuple[str, list[float], list[float]]] = []
    for query in panel.queries:
        expression = substitute(query.expr, interval, "5m")
        for series in prometheus.over(expression, start, end, max(1.0, (end - start) / 240)):
            label = query.legend
            for name, value in series["metric"].items():
                label = label.replace("{{" + name + "}}", value)
            points = [(t, float(v)) for t, v in series["values"] if v != "NaN"]
            lines.append((label, [(t - start) / 60 for t, _ in points], [scale * v for _, v in points]))
    if panel.kind == "share":
        names = [name for name in COLOURS if any(name == label for label, _, _ in lines)]
        common = sorted({t for _, times, _ in lines for t in times})
        table = {label: dict(zip(times, values, strict=True)) for label, times, values in lines}
        rows = [[table[name].get(t, 0.0) for t in common] for name in names]
        totals = [sum(column) or 1.0 for column in zip(*rows, strict=True)]
        stacked = [[100 * v / total for v, total in zip(row, totals, strict=True)] for row in rows]
        axes.stackplot(
            common, stacked, labels=names, colors=[LINE_COLOURS[COLOURS[name]] for name in names], alpha=0.75
        )
        axes.set_ylim(0, 100)
        axes.set_ylabel("%", fontsize=8)
    else:
        for n, (label, times, values) in enumerate(sorted(lines)):
            chosen = LINE_COLOURS[COLOURS[label]] if label in COLOURS else LINES[n % len(LINES)]
            dashed = "--" if label.startswith(("expected", "threshold")) else "-"
            axes.plot(times, values, dashed, color=chosen, linewidth=1.4, label=label)
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        for step, name in panel.steps:
            if axes.get_ylim()[1] >= scale * step:
                axes.axhline(scale * step, color=LINE_COLOURS[name], linestyle=":", linewidth=1)
        axes.set_ylabel({"percentunit": "%", "s": "ms", "reqps": "requests/s"}.get(panel.unit, ""), fontsize=8)
    axes.axvspan((attack[0] - start) / 60, (attack[1] - start) / 60, color="#f2495c", alpha=0.10)
    axes.set_xlim(0, (end - start) / 60)
    axes.tick_params(labelsize=8)
    axes.grid(color="#3a3d43", linewidth=0.5)
    axes.set_xlabel("minutes", fontsize=8)
    if lines:
        axes.legend(fontsize=7, loc="upper left", framealpha=0.6, facecolor=PAPER, labelcolor=INK, ncols=2)
    for spine in axes.spines.values():
        spine.set_color("#3a3d43")
