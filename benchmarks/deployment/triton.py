"""End-to-end time of /predict through Triton, against the embedded engine, in one run.

Both servers run the same model file on the same machine, in interleaved rounds whose order rotates; figures are medians
over rounds. wrk is the client and shares the cores with both. Triton is the real one from the wheel, with the Python
backend that runs the file in ONNX Runtime.

Where the time goes is read from the server's own stage histograms (`decode`, `queue`, `inference`, the last from
sending to the answer) and from Triton's counters, as means over the same requests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.closed_loop import add_image, add_rounds, lua, raw_samples, rotated, table, uploaded, wrk
from ..harness.processes import Server, Triton, family, rss_mb
from ..harness.prometheus import scraped
from ..harness.report import ROOT

EXAMPLES = """examples:
  python -m benchmarks.deployment.triton                                    the bundled model, about three minutes
  python -m benchmarks.deployment.triton --rounds 1 --seconds 1 --out /tmp/triton   a quick look
  python -m benchmarks.deployment.triton --image examples/cat.png --clients 1 8

needs wrk (apt-get install wrk) and the real Triton (make .venv-triton/.locked).
"""
ENGINES = ("embedded", "triton")
STAGES = ("decode", "queue", "inference")


def main() -> int:
    parser = report.parser("deployment.triton", __doc__, EXAMPLES)
    venv = Path(os.environ.get("AWNET_TRITON_VENV") or ROOT / ".venv-triton")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--venv", type=Path, default=venv, help="environment with the real Triton [.venv-triton]")
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    report.add_out(parser, "triton")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    if not any(options.venv.glob("lib/python3.*/site-packages/pytriton/tritonserver")):
        print(f"skipped: no Triton in {options.venv} (make .venv-triton/.locked)", file=sys.stderr)
        return 0
    found = measure(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    facts = report.loaded_machine()
    image = uploaded(options.image)
    samples: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in options.clients} for name in ENGINES}
    memory: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_bytes(lua(image))
        convert = [sys.executable, "-m", "export.triton_python", "--repository", str(options.repository)]
        subprocess.run([*convert, "--out", str(folder / "triton")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        backend = stack.enter_context(Triton(folder / "triton", options.venv, folder / "triton.log"))
        backend.answering(f"http://127.0.0.1:{backend.http}/v2/health/ready")
        ports, processes = {}, {}
        for name in ENGINES:
            settings: dict[str, Any] = {"repository": options.repository, "engine": name, "log_level": "warning"}
            settings |= {"triton_urls": f"127.0.0.1:{backend.grpc}"} if name == "triton" else {}
            server = Server(drain_seconds=0, **settings)
            ports[name], processes[name] = server.port, stack.enter_context(server)
            server.wait_ready()
        behind = {
            "embedded": [processes["embedded"].pid],
            "triton": [processes["triton"].pid, *family(backend.pid)],
        }
        for name in ENGINES:
            wrk(ports[name], 8, 1.0, script)
            memory[name] = sum(map(rss_mb, behind[name]))
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(ENGINES, turn):
                    stages, counters = server_sums(ports[name]), triton_counters(backend.metrics)
                    sample = wrk(ports[name], clients, options.seconds, script, behind[name])
                    sample |= stage_means(stages, server_sums(ports[name]))
                    if name == "triton":
                        sample |= triton_means(counters, triton_counters(backend.metrics))
                    samples[name][clients].append(sample)
                    rate = f"{sample['rps']:7.0f} req/s"
                    print(f"round {turn + 1} clients {clients:2d} {name:8s} {rate}", file=sys.stderr)
    return {
        "what": "closed loop of POST /predict, multipart, through Triton and embedded; medians over interleaved rounds",
        "machine": facts,
        "picture_bytes": len(image),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "memory_mb": memory,
        "engines": table(samples),
        "samples": raw_samples(samples),
    }


def server_sums(port: int) -> dict[str, float]:
    """Sums and counts of the server's histograms."""
    found = scraped(port)
    sums = {stage: found[f'awnet_stage_seconds_sum{{stage="{stage}"}}'] for stage in STAGES}
    sums["requests"] = found['awnet_stage_seconds_count{stage="inference"}']
    sums["total"] = found['awnet_request_seconds_sum{route="/predict"}']
    return sums


def triton_counters(port: int) -> dict[str, float]:
    """Triton's counters over all its models."""
    found = scraped(port)

    def over(name: str) -> float:
        return sum(value for key, value in found.items() if key.startswith(name + "{"))

    return {
        "requests": over("nv_inference_request_success"),
        "executions": over("nv_inference_exec_count"),
        "request": over("nv_inference_request_duration_us") / 1e6,
        "queue": over("nv_inference_queue_duration_us") / 1e6,
    }


def stage_means(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean milliseconds a request of each stage of the server."""
    requests = max(1.0, after["requests"] - before["requests"])
    return {f"{name}_ms": 1000 * (after[name] - before[name]) / requests for name in (*STAGES, "total")}


def triton_means(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean milliseconds a request inside Triton, and requests an execution."""
    gone = {name: after[name] - before[name] for name in after}
    requests = max(1.0, gone["requests"])
    return {
        "triton_ms": 1000 * gone["request"] / requests,
        "triton_queue_ms": 1000 * gone["queue"] / requests,
        "batch": requests / max(1.0, gone["executions"]),
    }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    engines, facts = found["engines"], found["machine"]
    lines = [
        "# /predict through Triton, against the embedded engine",
        "",
        f"{facts['cpu']}, {facts['cores']} cores shared by client, server and Triton (load before: "
        f"{facts['load_before'][0]:.1f}); {found['picture_bytes']} byte image; medians of {found['rounds']} "
        f"interleaved rounds of {found['seconds']:g} s. Triton is that of the nvidia-pytriton wheel, with its Python "
        "backend. Made by `python -m benchmarks.deployment.triton`.",
        "",
        "| clients | engine | req/s | p50 ms | p99 ms | CPU ms a request | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for clients in engines["embedded"]:
        for name in ENGINES:
            row = engines[name][clients]
            lines.append(
                f"| {clients} | {name} | {row['rps']:.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} "
                f"| {row['cpu_ms']:.2f} | {row['failed']:.0f} |"
            )
    lines += ["", "| clients | triton / embedded: req/s | p50 | p99 |", "|---|---|---|---|"]
    for clients in engines["embedded"]:
        ours, theirs = engines["triton"][clients], engines["embedded"][clients]
        ratios = [ours[key] / theirs[key] for key in ("rps", "p50_ms", "p99_ms")]
        lines.append(f"| {clients} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    lines += [
        "",
        "Where a request's time goes, mean ms. `inference` is from sending to Triton's answer; `in Triton` is the part "
        "of it that Triton itself counts, its queue included; the rest is gRPC on both sides.",
        "",
        "| clients | engine | total | decode | queue | inference | in Triton (queue) | share of total "
        "| images an execution |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for clients in engines["embedded"]:
        for name in ENGINES:
            row = engines[name][clients]
            inside = (
                f"{row['triton_ms']:.2f} ({row['triton_queue_ms']:.2f}) "
                f"| {100 * row['triton_ms'] / row['total_ms']:.0f} % | {row['batch']:.1f}"
                if "triton_ms" in row
                else "- | - | -"
            )
            stages = " | ".join(f"{row[f'{stage}_ms']:.2f}" for stage in ("total", *STAGES))
            lines.append(f"| {clients} | {name} | {stages} | {inside} |")
    memory = found["memory_mb"]
    lines += [
        "",
        f"Resident: embedded {memory['embedded']:.0f} MB; triton {memory['triton']:.0f} MB with Triton and its stub.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
