"""Closed-loop throughput and latency of /predict, against a plain FastAPI handler and against no HTTP at all.

Every contestant runs the same model file on the same machine in the same run, in interleaved rounds whose order
rotates; the figures are medians over rounds. wrk is the client and shares the cores.

* `server`: `python -m server`, everything switched on (metrics, request ids, checks, timing).
* `server-all`: the same with `--lone-threads 0`, so that all cores run an image while no other is there.
* `plain`: a sync FastAPI handler, one `session.run` a request, ONNX Runtime's default session.
* `plain-1`: the same with a session of one thread that does not spin, the better choice under concurrency.
* `raw-1`, `raw-16`: decode and session in a loop on every core, no HTTP; batches of 1 and 16.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server.core.cpu_limits import usable_cores

from .harness import report
from .harness.closed_loop import (
    add_image,
    add_model,
    add_rounds,
    chosen,
    kept,
    lua,
    rotated,
    selection,
    table,
    uploaded,
    wrk,
)
from .harness.processes import Process, Server, free_port, rss_mb
from .harness.report import ROOT

EXAMPLES = """examples:
  python -m benchmarks.server                                  the bundled model, about four minutes
  python -m benchmarks.server --rounds 1 --seconds 1 --out /tmp/server   a quick look
  python -m benchmarks.server --clients 1 8 --image examples/cat.png     another image
"""
SERVERS = ("server", "server-all", "plain", "plain-1")
GOALS = {1: 0.95, 8: 1.3, 32: 1.3}


def main() -> int:
    parser = report.parser("server", __doc__, EXAMPLES)
    add_model(parser)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    report.add_out(parser, "server")
    parser.add_argument("--plain", nargs=2, metavar=("PORT", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--raw", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = find(options.repository, options.model, options.version)
    if options.plain:
        serve_plain(model, int(options.plain[0]), int(options.plain[1]))
        return 0
    image = uploaded(options.image)
    if options.raw:
        print(json.dumps(raw_loop(model, image, options.raw, options.seconds)))
        return 0
    if report.missing("wrk"):
        return 0
    found = measure(options, model, image)
    text = markdown(found)
    report.publish(options.out, found, text)
    print(text)
    return 0


def find(repository: Path, name: str, version: str) -> Path:
    """The model file of `version`, or of the highest one for 'latest'."""
    if version == "latest":
        numbers = [int(p.name) for p in (repository / name).glob("*") if (p / "model.onnx").is_file()]
        version = str(max(numbers, default=0))
    path = repository / name / version / "model.onnx"
    if not path.is_file():
        raise SystemExit(f"there is no {path}")
    return path


def measure(options: argparse.Namespace, model: Path, image: bytes) -> dict[str, Any]:
    """All rounds; returns the report."""
    facts = report.loaded_machine()
    samples: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in options.clients} for name in SERVERS}
    raw: dict[str, list[float]] = {"raw-1": [], "raw-16": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_bytes(lua(image))
        ports, processes, started = {}, {}, {}
        for name in SERVERS:
            begin = time.perf_counter()
            ports[name], process = contestant(name, options)
            processes[name] = stack.enter_context(process)
            process.answering(f"http://127.0.0.1:{ports[name]}/v2/health/ready")
            started[name] = {"ready_seconds": time.perf_counter() - begin}
        for name in SERVERS:  # warm, and prove that every contestant answers
            wrk(ports[name], 2, 1.0, script)
            started[name]["rss_mb"] = rss_mb(processes[name].pid)
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(SERVERS, turn):
                    sample = wrk(ports[name], clients, options.seconds, script, [processes[name].pid])
                    samples[name][clients].append(sample)
                    print(
                        f"round {turn + 1} clients {clients:2d} {name:10s} {sample['rps']:7.0f} req/s", file=sys.stderr
                    )
            for name in raw:
                loop = [sys.executable, "-m", "benchmarks.server", "--raw", name.partition("-")[2]]
                loop += [*selection(options), "--seconds", str(options.seconds)]
                loop += ["--image", str(options.image)] if options.image else []
                # The idle servers hold no core: none of their threads spins once its requests are answered.
                done = subprocess.run(loop, cwd=ROOT, check=True, capture_output=True, text=True)
                raw[name].append(json.loads(done.stdout)["images_per_second"])
    return {
        "what": "closed loop of POST /predict, multipart, medians over interleaved rounds",
        "machine": facts,
        "model": {"file": str(model.relative_to(options.repository)), "bytes": model.stat().st_size},
        "picture_bytes": len(image),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "servers": table(samples),
        "start": started,
        "raw_images_per_second": {name: statistics.median(values) for name, values in raw.items()},
        "samples": kept(samples),
    }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    servers = found["servers"]
    lines = [
        "# /predict under a closed loop",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared by client and server; "
        f"{found['picture_bytes']} byte image; medians of {found['rounds']} interleaved rounds of "
        f"{found['seconds']:g} s, load {found['machine']['load_before'][0]:.1f} before. Made by "
        "`python -m benchmarks.server`. Where others use the machine, p10 says what a request takes while cores are "
        "free.",
        "",
        "| clients | contestant | req/s | p10 ms | p50 ms | p99 ms | CPU ms a request | cores busy | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for clients in servers["server"]:
        for name in SERVERS:
            row = servers[name][clients]
            lines.append(
                f"| {clients} | {name} | {row['rps']:.0f} | {row['p10_ms']:.2f} | {row['p50_ms']:.2f} "
                f"| {row['p99_ms']:.2f} | {row['cpu_ms']:.2f} | {row['cores']:.2f} | {row['failed']:.0f} |"
            )
    lines += ["", "| clients | server / plain | server / better plain | goal against plain |", "|---|---|---|---|"]
    for clients in servers["server"]:
        ours, plain = servers["server"][clients]["rps"], servers["plain"][clients]["rps"]
        better = max(plain, servers["plain-1"][clients]["rps"])
        goal = GOALS.get(int(clients))
        lines.append(f"| {clients} | {ours / plain:.2f} | {ours / better:.2f} | {f'>= {goal}' if goal else '-'} |")
    raw = found["raw_images_per_second"]
    lines += ["", "Without HTTP, on all cores: " + ", ".join(f"{k} {v:.0f} images/s" for k, v in raw.items()) + "."]
    start = found["start"]
    lines += [
        "",
        "Ready after "
        + ", ".join(f"{n}: {start[n]['ready_seconds']:.2f} s, {start[n]['rss_mb']:.0f} MB" for n in SERVERS)
        + ".",
        "",
    ]
    return "\n".join(lines)


def serve_plain(model: Path, port: int, threads: int) -> None:
    """What anyone writes first: FastAPI, a sync handler, one `session.run` a request. `threads` 0 is the default."""
    import onnxruntime as ort
    import uvicorn
    from fastapi import FastAPI, UploadFile

    settings = ort.SessionOptions()
    if threads:
        settings.intra_op_num_threads = threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["awnet.contract"])
    labels, size = contract["labels"], contract["preprocessing"]["size"]
    limits = {name: point["score"] for name, point in contract["thresholds"].items()}
    app = FastAPI()

    def predict(image: UploadFile) -> dict[str, Any]:
        opened: Image.Image = Image.open(image.file).convert("RGB")
        if opened.size != (size, size):
            opened = opened.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(opened).transpose(2, 0, 1)[None]
        logits, p_type, _ = session.run(["logits", "p_type", "omega"], {"image": pixels})
        exponent = np.exp(logits[0] - logits[0].max())
        row = exponent / exponent.sum()
        score = float(p_type[0, 0])
        verdict = next((v for v in ("adversarial", "suspicious") if score > limits[v]), "clean")
        return {
            "predictions": [
                {"class_id": int(k), "label": labels[k], "probability": float(row[k])} for k in np.argsort(-row)[:5]
            ],
            "adversarial": {"score": score, "verdict": verdict},
        }

    # Annotations are text in this module and UploadFile is local to this function: name the type itself.
    predict.__annotations__["image"] = UploadFile
    app.post("/predict", response_model=None)(predict)
    app.get("/v2/health/ready")(lambda: {"ready": True})
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def raw_loop(model: Path, image: bytes, batch: int, seconds: float) -> dict[str, float]:
    """Images a second of decoding and inference alone, one thread with a session call of its own on every core."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2]

    def one() -> Any:
        opened: Image.Image = Image.open(io.BytesIO(image)).convert("RGB")
        if opened.size != (size, size):
            opened = opened.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(opened).transpose(2, 0, 1)

    counts = [0] * usable_cores()
    end = [0.0]

    def work(index: int) -> None:
        while time.perf_counter() < end[0]:
            session.run(["logits", "p_type", "omega"], {"image": np.stack([one() for _ in range(batch)])})
            counts[index] += batch

    for span in (0.3, seconds):  # the first span warms up
        counts[:] = [0] * len(counts)
        begin = time.perf_counter()
        end[0] = begin + span
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.perf_counter() - begin
    return {"images_per_second": sum(counts) / spent}


def contestant(name: str, options: argparse.Namespace) -> tuple[int, Process]:
    """Start contestant `name`; its port and process."""
    if name.startswith("server"):
        server = Server(drain_seconds=0, lone_threads=0 if name == "server-all" else 1, **chosen(options))
        return server.port, server
    port, threads = free_port(), "1" if name == "plain-1" else "0"
    plain = [sys.executable, "-m", "benchmarks.server", "--plain", str(port), threads, *selection(options)]
    return port, Process(plain)


if __name__ == "__main__":
    sys.exit(main())
