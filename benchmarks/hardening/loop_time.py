"""The longest that one request of each kind holds the event loop, and with it everybody else.

Requests as hostile as limits let them be, one at a time, at a server with the bundled model. Its loop is asyncio's, so
that each callback can be measured by the CPU time of its thread: other load on the machine does not show. What other
threads and processes take is not in it.
"""

from __future__ import annotations

import base64
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..guard.honest_traffic import png
from ..harness import report
from ..harness.processes import Server, free_port
from ..harness.waiting import eventually
from .hostile import form

EXAMPLES = """examples:
  python -m benchmarks.hardening.loop_time
  python -m benchmarks.hardening.loop_time --times 3 --only gRPC --out /tmp/loop"""
BODY = (8 << 20) - 4096  # as much as AWNET_MAX_BODY_BYTES lets in
INFER = "/v2/models/awnet/infer"
MANY = "multipart/form-data; boundary=B"


class Request(NamedTuple):
    """Of HTTP; over gRPC where `path` is empty: the body is a ModelInferRequest."""

    name: str
    body: bytes = b""
    path: str = ""
    headers: Mapping[str, str] = {}
    method: str = "POST"


def requests() -> list[Request]:
    """One of each kind."""
    rng = np.random.default_rng(0)
    small = [png(rng.integers(0, 256, (3, 32, 32), np.uint8)) for _ in range(32)]
    noise = [rng.bytes(BODY // 32 - 200) for _ in range(32)]
    text = base64.b64encode(noise[0] * 24)[: BODY - 1000]
    text = text[: len(text) // 4 * 4]
    each = [base64.b64encode(one[: len(one) * 23 // 32]).decode() for one in noise]
    numbers = rng.integers(0, 256, 32 * 3072).tolist()
    nested = rng.integers(0, 256, (32, 3, 32, 32)).tolist()
    raw = len(small[0]).to_bytes(4, "little") + small[0]
    as_json = {"content-type": "application/json"}
    signals = [{"name": name} for name in ("logits", "p_type", "omega")]

    def tensors(count: int, data: Any, datatype: str = "UINT8", **more: Any) -> bytes:
        shape = [count, 3, 32, 32] if datatype == "UINT8" else [count]
        name = "image" if datatype == "UINT8" else "image_bytes"
        tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}
        return json.dumps({"inputs": [tensor], "outputs": signals}).encode()

    encoded = {"parameters": {"content_type": "base64"}}
    found = [
        Request("health", b"", "/v2/health/live", {}, "GET"),
        Request("one small image", small[0], "/predict", {"content-type": "image/png"}),
        Request("raw body, 8 MB of noise", rng.bytes(BODY), "/predict", {"content-type": "image/png"}),
        Request(
            "form, 32 small images, all signals", form(small), "/predict?signals=all&top_k=10", {"content-type": MANY}
        ),
        Request("form, 32 files, 8 MB", form(noise), "/predict", {"content-type": MANY}),
        Request("JSON with base64, 8 MB in one", b'{"image":"' + text + b'"}', "/predict", as_json),
        Request("JSON with base64, 8 MB in 32", json.dumps({"image": each}).encode(), "/predict", as_json),
        Request("OIP, JSON, 32 images as numbers", tensors(32, numbers), INFER, as_json),
        Request("OIP, JSON, 32 images as nested numbers", tensors(32, nested), INFER, as_json),
        Request("OIP, JSON, base64, 8 MB in one", tensors(1, [text.decode()], "BYTES", **encoded), INFER, as_json),
        Request("OIP, JSON, base64, 8 MB in 32", tensors(32, each, "BYTES", **encoded), INFER, as_json),
        Request("OIP, JSON, 8 MB of spaces", b" " * (BODY - 100) + tensors(1, numbers[:3072]), INFER, as_json),
        _binary("OIP, binary, 8 MB in 32 files", b"".join(len(one).to_bytes(4, "little") + one for one in noise), 32),
        Request("query of 30,000 bytes", small[0], f"/predict?top_k={'1' * 30_000}"),
        Request("query of 8,000 options", small[0], f"/predict?{'a=1&' * 7_500}"),
        Request("2,900 headers", small[0], "/predict", {f"a{n}": "" for n in range(2_900)}),
        Request("one header of 31,000 bytes", small[0], "/predict", {"accept": "a," * 15_500}),
        Request("If-None-Match of 31,000 bytes", b"", "/", {"if-none-match": '"a",' * 7_700}, "GET"),
        Request("path of 31,000 bytes", b"", "/v2/models/" + "a" * 31_000, {}, "GET"),
        Request("model", b"", "/model", {}, "GET"),
        Request("page's models", b"", "/page/model.json", {}, "GET"),
        Request("metrics", b"", "/metrics", {}, "GET"),
        Request("docs", b"", "/docs", {}, "GET"),
    ]
    return found + _grpc(rng.bytes(BODY), numbers, noise, raw)


def _binary(name: str, data: bytes, count: int) -> Request:
    tensor = {
        "name": "image_bytes",
        "datatype": "BYTES",
        "shape": [count],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return Request(name, head + data, INFER, {"Inference-Header-Content-Length": str(len(head))})


def _grpc(large: bytes, numbers: list[int], files: list[bytes], raw: bytes) -> list[Request]:
    from tritonclient.grpc import service_pb2

    def infer(count: int, datatype: str = "BYTES", **more: Any) -> Any:
        name, inner = ("image_bytes", []) if datatype == "BYTES" else ("image", [3, 32, 32])
        tensor = {"name": name, "datatype": datatype, "shape": [count, *inner], **more.pop("of_input", {})}
        return service_pb2.ModelInferRequest(model_name="awnet", inputs=[tensor], **more)

    elements = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    shadowed = infer(1, raw_input_contents=[raw]).SerializeToString()
    # The field of the model's name again and again: the last one counts.
    names = b"\x0a\xff\x1f" + b"a" * 4095
    contents = infer(32, "UINT8", of_input={"contents": {"uint_contents": numbers}})
    return [
        Request(
            "gRPC, 8 MB in one file",
            infer(1, raw_input_contents=[len(large[:-400]).to_bytes(4, "little") + large[:-400]]).SerializeToString(),
        ),
        Request("gRPC, 8 MB in 32 files", infer(32, raw_input_contents=[elements]).SerializeToString()),
        Request("gRPC, 32 images as numbers", contents.SerializeToString()),
        Request(
            "gRPC, files in contents, 8 MB",
            infer(32, of_input={"contents": {"bytes_contents": files}}).SerializeToString(),
        ),
        Request("gRPC, 8 MB of shadowed names", names * (BODY // len(names) - 1) + shadowed),
        Request(
            "gRPC, 4,000 parameters",
            b"".join(b"\x22\x0c\x0a\x06%06x\x12\x02\x08\x01" % n for n in range(1300)) + shadowed,
        ),
    ]


# Argument: the file to write to.
WATCHED = """
import asyncio, os, signal, sys, time, uvloop
from asyncio import events
path, held = sys.argv.pop(), [0.0, 0.0]
run = events.Handle._run
def measured(handle):
    begun = time.thread_time()
    run(handle)
    spent = time.thread_time() - begun
    held[:] = max(held[0], spent), held[1] + spent
events.Handle._run = measured
uvloop.new_event_loop = asyncio.SelectorEventLoop
def tell(*_):
    with open(path + "~", "w") as file:
        file.write(f"{held[0]} {held[1]}")
    os.replace(path + "~", path)
    held[:] = 0.0, 0.0
signal.signal(signal.SIGUSR1, tell)
from server.__main__ import main
sys.exit(main([]))
"""


class Watched(Server):
    """A server that tells how long callbacks held its loop."""

    def __init__(self, folder: Path, held: Path, **settings: Any) -> None:
        self._held = held
        super().__init__(folder, **settings)

    def start(self) -> None:
        self.command = [sys.executable, "-c", WATCHED, str(self._held)]
        super().start()


def main() -> int:
    parser = report.parser("hardening.loop_time", __doc__, EXAMPLES)
    parser.add_argument("--times", type=int, default=7, help="each request is sent [7]")
    parser.add_argument("--only", default="", metavar="TEXT", help="requests in whose name this stands [all]")
    report.add_out(parser, "loop_time")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": report.loaded_machine(), "times": options.times, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        grpc_port = free_port()
        held = Path(scratch) / "held"
        with Watched(Path(scratch), held, threads=1, grpc_port=grpc_port, timeout_seconds=120) as server:
            server.wait_ready(180)
            for request in requests():
                if options.only in request.name:
                    found["rows"].append(measured(server, held, grpc_port, request, options.times))
                    print(found["rows"][-1], file=sys.stderr)
    report.conclude(options.out, found, markdown(found))
    return 0


def measured(server: Server, held: Path, grpc_port: int, request: Request, times: int) -> dict[str, Any]:
    """Milliseconds of the longest callback and of all together, medians, since the first ones load things."""
    ask = _over_http(server.port, request) if request.path else _over_grpc(grpc_port, request)
    outcome, longest, together = "", [], []
    for _ in range(times):
        time.sleep(0.05)
        _held(server, held)
        outcome = ask()
        time.sleep(0.05)
        held_ms = _held(server, held)
        longest.append(held_ms[0])
        together.append(held_ms[1])
    row = {"name": request.name, "bytes": len(request.body), "outcome": outcome}
    return row | {
        "longest_ms": round(statistics.median(longest), 2),
        "together_ms": round(statistics.median(together), 2),
    }


def _held(server: Server, file: Path) -> tuple[float, float]:
    """Milliseconds of the longest callback since this was last asked, and of all."""
    file.unlink(missing_ok=True)
    server.send(signal.SIGUSR1)
    eventually(file.exists, 60, "the server tells what held it")
    longest, together = file.read_text("utf-8").split()
    return 1000 * float(longest), 1000 * float(together)


def _over_http(port: int, request: Request) -> Callable[[], str]:
    def ask() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, 120)
        try:
            connection.request(request.method, request.path, request.body or None, dict(request.headers))
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()

    return ask


def _over_grpc(port: int, request: Request) -> Callable[[], str]:
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def ask() -> str:
        try:
            call(request.body, timeout=120)
            return "OK"
        except grpc.RpcError as error:
            return str(error.code().name)

    return ask


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# What one request takes of the event loop",
        "",
        "`python -m benchmarks.hardening.loop_time`: CPU time of the loop's thread in the longest callback, and "
        "in all of one "
        f"request, medians of {found['times']}. Bodies come in many callbacks. {machine['cpu']}, load "
        f"{machine['load_before'][0]:.1f} before.",
        "",
        "| request | body, bytes | answer | longest, ms | together, ms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['bytes']:,} | {row['outcome']} | {row['longest_ms']:g} | {row['together_ms']:g} |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
