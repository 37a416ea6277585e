"""Writes the tables of docs/metrics.md from the metrics that the server registers.

    python -m deploy.document_metrics

A metric without a help text, or a label that is not explained below, stops it; a test holds the page to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from server.core.decode_pool import DecoderEnd
from server.core.policy import POLICIES
from server.core.verdict import VERDICTS
from server.findings.delivery import Result as Delivered
from server.findings.finding import ACTIVITIES, KINDS
from server.findings.quarantine import Result as Quarantined
from server.monitoring.detection import PROBE_RESULTS as PROBES
from server.monitoring.detection import Monitor
from server.monitoring.detection_metrics import DetectionCollector
from server.monitoring.engine_metrics import CacheResult
from server.monitoring.findings_metrics import GUARD_RESULTS
from server.monitoring.metrics import SENDING_RESULTS, Metrics
from server.settings.sources import SIGNALS
from server.versions.events import ReloadResult
from server.workers.supervisor import OWN

PAGE = Path(__file__).resolve().parents[1] / "docs/metrics.md"
BEGIN, END = "<!-- made by python -m deploy.document_metrics -->", "<!-- end -->"

# Every label comes from a closed set; this says which.
LABELS = {
    "activity": "of a finding: " + ", ".join(f"`{activity}`" for activity in ACTIVITIES),
    "about": "`class` or `verdict`",
    "address": "a Triton from `AWNET_TRITON_URLS`",
    "block": "a block of the network, from the contract: `blocks.0` and so on",
    "calibrated": "`true` or `false`: whether the thresholds speak for the image",
    "code": "HTTP status; of gRPC calls the HTTP status of the same outcome; 499 where the client left unanswered",
    "decision": "`answered`, `withheld`; `answered-unsure`, `withheld-unsure` where no threshold speaks for the image",
    "domain": "a domain of the contract, such as `pristine`",
    "expected": "the verdict that a golden image must get: " + ", ".join(f"`{verdict}`" for verdict in VERDICTS),
    "kind": "of a finding: " + ", ".join(f"`{kind}`" for kind in KINDS),
    "method": "HTTP method; `GRPC`; anything else is `other`",
    "mode": "an operating mode that the version has: `auto`, `robust` or `natural`",
    "model": "a configured model",
    "of": "`uncalibrated`: their share among all images; `suspicious`, `adversarial`: the share of uncalibrated images "
    "over that threshold",
    "policy": "that of the requests: "
    + ", ".join(f"`{policy}`" for policy in POLICIES)
    + "; of `observe` nothing is carried out",
    "reason": "the type of the problem, as in [api.md](api.md), and `client-gone`",
    "result": "of reloads "
    + ", ".join(f"`{result}`" for result in get_args(ReloadResult))
    + "; of golden probes "
    + ", ".join(f"`{result}`" for result in PROBES)
    + "; of the shadow `compared`, `dropped`, `failed`; of the answer cache "
    + ", ".join(f"`{result}`" for result in get_args(CacheResult))
    + "; of the query guard "
    + ", ".join(f"`{result}`" for result in GUARD_RESULTS)
    + "; of findings "
    + ", ".join(f"`{result}`" for result in get_args(Delivered))
    + "; of their images "
    + ", ".join(f"`{result}`" for result in get_args(Quarantined))
    + "; of telemetry "
    + ", ".join(f"`{result}`" for result in SENDING_RESULTS),
    "role": "`serving`, `canary`, `shadow` or `kept`",
    "route": "a template, such as `/v2/models/{model}/infer`; what is served nowhere is `other`; "
    "seconds are those of predictions by route, and of all others as `other`",
    "signal": "of OTLP: " + ", ".join(f"`{signal}`" for signal in SIGNALS) + "; only those that are sent",
    "stage": "`decode`, `queue` or `inference`",
    "to": "a receiver of findings: `webhook`, `syslog`, `otlp`",
    "verdict": ", ".join(f"`{verdict}`" for verdict in VERDICTS),
    "version": "an open version of the model; of `awnet_build_info`, the server's own",
    "python": "version of Python",
    "who": "`client`: one; `all`: several together",
    "why": "as in the answer: `resized`, `lossy`, `colour palette`, `1-bit image`, or what `domain.statistics` says; "
    "of decoding processes " + ", ".join(f"`{why}`" for why in get_args(DecoderEnd)),
}


# How the values of several workers become one; `server.workers.metrics_merge` does it.
WORKERS = {
    "sum": "sum",
    "livesum": "sum",
    "livemax": "largest",
    "livemin": "least",
    "mean": "mean",
    "pooled": "pooled",
    "adaptive": "pooled",
    "service": "whole",
}


class Row(NamedTuple):
    """One metric, under the name that a query uses."""

    name: str
    kind: str
    labels: tuple[str, ...]
    mode: str
    help: str


def rows() -> list[Row]:
    """Every metric that a server registers, but for those of the process itself, by name."""
    metrics = Metrics(Monitor(), 1)
    modes = metrics.modes
    found: list[tuple[Any, ...]] = [(name, kind, (), "service", text) for name, kind, text in OWN]
    for collector in metrics.collectors():
        if isinstance(collector, MetricWrapperBase):
            name, kind = collector._name, collector._type
            edges = ""
            if isinstance(collector, Histogram):
                edges = " Edges: " + ", ".join(f"{edge:g}" for edge in collector._upper_bounds[:-1]) + "."
            found.append((name, kind, tuple(collector._labelnames), modes[name], collector._documentation + edges))
        elif isinstance(collector, DetectionCollector):
            found += [
                (f.name, f.type, tuple(f._labelnames), modes[f.name], f.documentation) for f in collector.families()
            ]
    return sorted(Row(f"{name}_total" if kind == "counter" else name, kind, *rest) for name, kind, *rest in found)


def table() -> str:
    """The generated part of the page. Raises ValueError for a metric or a label that nobody has explained."""
    lines = ["| metric | type | labels | of workers | meaning |", "|---|---|---|---|---|"]
    used: set[str] = set()
    for row in rows():
        if not row.help.strip():
            raise ValueError(f"{row.name} has no help text")
        used |= {*row.labels}
        labels = ", ".join(f"`{name}`" for name in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {WORKERS[row.mode.partition(' ')[0]]} | {row.help} |")
    if unknown := used - LABELS.keys():
        raise ValueError(f"labels that are not explained in {Path(__file__).name}: {', '.join(sorted(unknown))}")
    lines += ["", "| label | values |", "|---|---|"]
    lines += [f"| `{label}` | {LABELS[label]} |" for label in sorted(used)]
    return "\n".join(lines) + "\n"


def page(before: str) -> str:
    """`before` with its generated part made anew."""
    head, rest = before.split(BEGIN, 1)
    return f"{head}{BEGIN}\n\n{table()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
