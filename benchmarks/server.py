"""Closed-loop throughput and latency of /predict, against a plain FastAPI handler and against no HTTP at all.

Every contestant runs the same model file on the same machine in the same run, in interleaved rounds whose order
rotates; the figures are medians over rounds. wrk is the client and shares the cores.

* `server`: `python -m server`, everything switched on (metrics, request ids, checks, timing).
* `plain`: a sync FastAPI handler, one `session.run` a request, ONNX Runtime's default session.
* `plain-1`: the same with a session of one thread that does not spin, the better choice under concurrency.
* `raw-1`, `raw-16`: decode and session in a loop on every core, no HTTP; batches of 1 and 16.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server.cores import usable_cores

EXAMPLES = """examples:
  python -m benchmarks.server                                  the bundled model, about four minutes
  python -m benchmarks.server --rounds 1 --seconds 1 --out /tmp/server   a quick look
  python -m benchmarks.server --clients 1 8 --image examples/cat.png     another picture
"""
ROOT = Path(__file__).parents[1]
SERVERS = ("server", "plain", "plain-1")
GOALS = {1: 0.95, 8: 1.3, 32: 1.3}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.server",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--model", default="awnet", help="[awnet]")
    parser.add_argument("--version", default="latest", help="[latest]")
    parser.add_argument("--image", type=Path, help="the picture to upload [a 32 px PNG of noise, 3 kB]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="[1 8 32]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement [4]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/server", help="without suffix")
    parser.add_argument("--plain", nargs=2, metavar=("PORT", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--raw", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = find(options.repository, options.model, options.version)
    if options.plain:
        serve_plain(model, int(options.plain[0]), int(options.plain[1]))
        return 0
    picture = options.image.read_bytes() if options.image else noise_png()
    if options.raw:
        print(json.dumps(raw_loop(model, picture, options.raw, options.seconds)))
        return 0
    if shutil.which("wrk") is None:
        print("skipped: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return 0
    report = measure(options, model, picture)
    write(options.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    write(options.out.with_suffix(".md"), text)
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


def noise_png() -> bytes:
    """A picture that compresses no better than a photograph."""
    pixels = np.clip(np.random.default_rng(0).normal(128, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def measure(options: argparse.Namespace, model: Path, picture: bytes) -> dict[str, Any]:
    """All rounds; returns the report."""
    facts = machine()
    samples: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in options.clients} for name in SERVERS}
    raw: dict[str, list[float]] = {"raw-1": [], "raw-16": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_bytes(lua(picture))
        ports, processes, started = {}, {}, {}
        for name in SERVERS:
            ports[name] = free_port()
            begin = time.perf_counter()
            processes[name] = stack.enter_context(running(command(name, ports[name], options)))
            wait_until_up(ports[name], processes[name])
            started[name] = {"ready_seconds": time.perf_counter() - begin}
        for name in SERVERS:  # warm, and prove that every contestant answers
            wrk(ports[name], 2, 1.0, script)
            started[name]["rss_mb"] = rss_mb(processes[name].pid)
        for turn in range(options.rounds):
            order = [*SERVERS[turn % len(SERVERS) :], *SERVERS[: turn % len(SERVERS)]]
            for clients in options.clients:
                for name in order:
                    sample = wrk(ports[name], clients, options.seconds, script, processes[name].pid)
                    samples[name][clients].append(sample)
                    print(
                        f"round {turn + 1} clients {clients:2d} {name:8s} {sample['rps']:7.0f} req/s", file=sys.stderr
                    )
            for name in raw:
                loop = [sys.executable, "-m", "benchmarks.server", "--raw", name.partition("-")[2]]
                loop += [*selection(options), "--seconds", str(options.seconds)]
                loop += ["--image", str(options.image)] if options.image else []
                # The idle servers hold no core: none of their threads spins once its requests are answered.
                done = subprocess.run(loop, cwd=ROOT, check=True, capture_output=True, text=True)
                raw[name].append(json.loads(done.stdout)["images_per_second"])
    table = {
        name: {
            str(clients): {key: statistics.median(s[key] for s in rounds) for key in rounds[0]}
            for clients, rounds in by_clients.items()
        }
        for name, by_clients in samples.items()
    }
    return {
        "what": "closed loop of POST /predict, multipart, medians over interleaved rounds",
        "machine": facts,
        "model": {"file": str(model.relative_to(options.repository)), "bytes": model.stat().st_size},
        "picture_bytes": len(picture),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "servers": table,
        "start": started,
        "raw_images_per_second": {name: statistics.median(values) for name, values in raw.items()},
        "samples": {name: {str(c): rounds for c, rounds in by.items()} for name, by in samples.items()},
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    servers = report["servers"]
    lines = [
        "# /predict under a closed loop",
        "",
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores shared by client and server; "
        f"{report['picture_bytes']} byte picture; medians of {report['rounds']} interleaved rounds of "
        f"{report['seconds']:g} s. Made by `python -m benchmarks.server`.",
        "",
        "| clients | contestant | req/s | p50 ms | p99 ms | CPU ms a request | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for clients in servers["server"]:
        for name in SERVERS:
            row = servers[name][clients]
            lines.append(
                f"| {clients} | {name} | {row['rps']:.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} "
                f"| {row['cpu_ms']:.2f} | {row['failed']:.0f} |"
            )
    lines += ["", "| clients | server / plain | server / better plain | goal against plain |", "|---|---|---|---|"]
    for clients in servers["server"]:
        ours, plain = servers["server"][clients]["rps"], servers["plain"][clients]["rps"]
        better = max(plain, servers["plain-1"][clients]["rps"])
        goal = GOALS.get(int(clients))
        lines.append(f"| {clients} | {ours / plain:.2f} | {ours / better:.2f} | {f'>= {goal}' if goal else '-'} |")
    raw = report["raw_images_per_second"]
    lines += ["", "Without HTTP, on all cores: " + ", ".join(f"{k} {v:.0f} images/s" for k, v in raw.items()) + "."]
    start = report["start"]
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


def raw_loop(model: Path, picture: bytes, batch: int, seconds: float) -> dict[str, float]:
    """Images a second of decoding and inference alone, one thread with a session call of its own on every core."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2]

    def one() -> Any:
        opened: Image.Image = Image.open(io.BytesIO(picture)).convert("RGB")
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


def selection(options: argparse.Namespace) -> list[str]:
    return ["--repository", str(options.repository), "--model", options.model, "--version", options.version]


def command(name: str, port: int, options: argparse.Namespace) -> list[str]:
    """How contestant `name` is started."""
    if name == "server":
        return [sys.executable, "-m", "server", "--port", str(port), *selection(options), "--drain-seconds", "0",
                "--admin-port", "none"]  # fmt: skip
    threads = "1" if name == "plain-1" else "0"
    return [sys.executable, "-m", "benchmarks.server", "--plain", str(port), threads, *selection(options)]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended on the way out."""
    process = subprocess.Popen(arguments, cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"a contestant ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.01)
    raise SystemExit("a contestant did not become ready within 30 s")


def lua(picture: bytes) -> bytes:
    """The wrk script that posts `picture` as a browser would and prints its figures as JSON."""
    boundary = "awnet-benchmark"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="picture.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    body += picture + f"\r\n--{boundary}--\r\n".encode()
    text = "".join(f"\\{byte:03d}" for byte in body)
    return f"""wrk.method = "POST"
wrk.body = "{text}"
wrk.headers["Content-Type"] = "multipart/form-data; boundary={boundary}"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('JSON{{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
""".encode()


def wrk(port: int, clients: int, seconds: float, script: Path, pid: int | None = None) -> dict[str, float]:
    """One measurement. `cpu_ms` is the server's CPU time a request, where /proc tells it."""
    before = cpu_seconds(pid)
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{clients}",
            f"-d{max(1, round(seconds))}s",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}/predict",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    spent = cpu_seconds(pid) - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON"))
    told = json.loads(line[4:])
    if told["failed"] or not told["requests"]:
        print(f"warning: {told['failed']} of {told['requests']} requests failed", file=sys.stderr)
    return {
        "rps": (told["requests"] - told["failed"]) / told["seconds"],
        "p50_ms": told["p50_ms"],
        "p99_ms": told["p99_ms"],
        "cpu_ms": 1000 * spent / max(1, told["requests"]),
        "failed": told["failed"],
    }


def cpu_seconds(pid: int | None) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import onnxruntime

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "load_before": list(os.getloadavg()),
    }


def write(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
