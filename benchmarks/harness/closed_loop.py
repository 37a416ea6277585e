"""A closed loop of clients against /predict: its options, wrk as the client, and how rounds are ordered and summed up.

Contestants are asked in turn, in rounds whose order rotates, so that a noisy moment hits them alike; figures are
medians over the rounds. wrk shares the cores with what it measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .load import noise_png
from .processes import cpu_seconds
from .report import ROOT

T = TypeVar("T")
Figures = dict[str, float]
ByClients = Mapping[int, Sequence[Figures]]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model is served."""
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--model", default="awnet", help="[awnet]")
    parser.add_argument("--version", default="latest", help="[latest]")


def selection(options: argparse.Namespace) -> list[str]:
    """The arguments of `add_model` once more, for another process."""
    return ["--repository", str(options.repository), "--model", options.model, "--version", options.version]


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The same as settings of a server."""
    return {"repository": options.repository, "model": options.model, "version": options.version}


def model_file(repository: Path, name: str, version: str) -> Path:
    """The file of `version`, or of the highest one for 'latest'. Raises SystemExit."""
    numbers = [int(path.parent.name) for path in (repository / name).glob("*/model.onnx") if path.parent.name.isdigit()]
    version = str(max(numbers, default=0)) if version == "latest" else version
    if not (path := repository / name / version / "model.onnx").is_file():
        raise SystemExit(f"there is no {path}")
    return path


def add_image(parser: argparse.ArgumentParser) -> None:
    """Which image is sent, as `uploaded` reads it."""
    parser.add_argument("--image", type=Path, help="the image to upload [a 32 px PNG of noise, 3 kB]")


def uploaded(image: Path | None) -> bytes:
    """The image to send: one that compresses no better than a photograph, if none is given."""
    return image.read_bytes() if image else noise_png(32, 0)


def add_rounds(parser: argparse.ArgumentParser, clients: list[int]) -> None:
    """How many clients, for how long and how often."""
    default = " ".join(map(str, clients))
    parser.add_argument("--clients", type=int, nargs="+", default=clients, help=f"[{default}]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement [4]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")


def rotated(contestants: Sequence[T], turn: int) -> list[T]:
    """Their order in round `turn`, from 0."""
    first = turn % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of every figure over the rounds."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def ratios(base: Sequence[Figures], other: Sequence[Figures]) -> dict[str, list[float]]:
    """Quartiles of other / base over the rounds, of CPU time a request and of requests a second."""
    pairs = list(zip(base, other, strict=True))
    if len(pairs) == 1:
        pairs *= 2  # of one round all are the same
    return {
        name: statistics.quantiles([b[name] / a[name] for a, b in pairs], n=4, method="inclusive")
        for name in ("cpu_ms", "rps")
    }


def table(samples: Mapping[str, ByClients]) -> dict[str, dict[str, Figures]]:
    """Contestant -> number of clients -> medians."""
    return {name: {str(c): medians(rounds) for c, rounds in by.items()} for name, by in samples.items()}


def raw_samples(samples: Mapping[str, ByClients]) -> dict[str, dict[str, Sequence[Figures]]]:
    """Every sample, by contestant and number of clients, as the report has them."""
    return {name: {str(c): rounds for c, rounds in by.items()} for name, by in samples.items()}


def form(image: bytes) -> tuple[bytes, str]:
    """The body that a browser would send, and its content type."""
    boundary = "awnet-benchmark"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def lua(image: bytes) -> bytes:
    """The wrk script that posts `image` as a browser would and prints its figures as JSON."""
    body, content_type = form(image)
    return posting(body, {"Content-Type": content_type})


def posting(body: bytes, headers: Mapping[str, str], pause_ms: float = 0.0) -> bytes:
    """The same for any body. `pause_ms`: a connection waits so long on average, exponentially distributed, before it
    asks again.
    """
    text = "".join(f"\\{byte:03d}" for byte in body)
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    if pause_ms:
        lines += ["function delay()", f"  return math.floor(0.5 - {pause_ms} * math.log(1 - math.random()))", "end"]
    more = "\n".join(lines)
    return f"""wrk.method = "POST"
wrk.body = "{text}"
{more}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('JSON{{"requests": %d, "seconds": %f, "failed": %d, ' ..
    '"p10_ms": %f, "p50_ms": %f, "p99_ms": %f}}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(10) / 1e3, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
""".encode()


def wrk(
    port: int, clients: int, seconds: float, script: Path, pids: Sequence[int] = (), path: str = "/predict"
) -> Figures:
    """One measurement. `cpu_ms` is the CPU time of the processes `pids` a request, where /proc tells it; `cores` are
    how many they kept busy.
    """
    before = sum(map(cpu_seconds, pids))
    url = f"http://127.0.0.1:{port}{path}"
    done = subprocess.run(
        ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "-s", str(script), url],
        check=True,
        capture_output=True,
        text=True,
    )
    spent = sum(map(cpu_seconds, pids)) - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON"))
    summary = json.loads(line[4:])
    if summary["failed"] or not summary["requests"]:
        print(f"warning: {summary['failed']} of {summary['requests']} requests failed", file=sys.stderr)
    return {
        "requests": summary["requests"],
        "rps": (summary["requests"] - summary["failed"]) / summary["seconds"],
        "p10_ms": summary["p10_ms"],
        "p50_ms": summary["p50_ms"],
        "p99_ms": summary["p99_ms"],
        "cpu_ms": 1000 * spent / max(1, summary["requests"]),
        "cores": spent / summary["seconds"],
        "failed": summary["failed"],
    }
