"""Peak memory of a server that gets a hundred gRPC calls of 8 MB at once: with default bounds, and with wide ones.

The calls hold images that are none, so that nothing but messages is counted; peak is the process's, above what it had
just before.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from ..harness import report
from ..harness.processes import Server, free_port

EXAMPLES = """examples:
  python -m benchmarks.hardening.grpc_memory
  python -m benchmarks.hardening.grpc_memory --calls 20 --out /tmp/memory
"""
BYTES = 8_000_000
BOUNDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "wide": {"grpc_max_calls": 1024, "max_held_bytes": 4 << 30},
}


def main() -> int:
    parser = report.parser("hardening.grpc_memory", __doc__, EXAMPLES)
    parser.add_argument("--calls", type=int, default=100, help="at once [100]")
    report.add_out(parser, "grpc_memory")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": report.loaded_machine(), "calls": options.calls, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        for bounds, settings in BOUNDS.items():
            port = free_port()
            with Server(Path(scratch), threads=1, grpc_port=port, timeout_seconds=60, **settings) as server:
                server.wait_ready(180)
                asyncio.run(_calls(port, 2))
                (proc := Path(f"/proc/{server.pid}") / "clear_refs").write_text("5", "utf-8")  # the peak begins anew
                before = _peak_mb(proc.parent)
                outcomes = asyncio.run(_calls(port, options.calls))
                grown = _peak_mb(proc.parent) - before
            found["rows"].append({"bounds": bounds, "peak_mb": round(grown), "outcomes": outcomes})
            report.publish(options.out, found, markdown(found))
    print(markdown(found))
    return 0


async def _calls(port: int, count: int) -> dict[str, int]:
    """So many calls at once: outcome -> how often."""
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1]}
    file = bytes(BYTES)
    message = service_pb2.ModelInferRequest(
        model_name="awnet", inputs=[tensor], raw_input_contents=[len(file).to_bytes(4, "little") + file]
    ).SerializeToString()

    async def one(channel: Any) -> str:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message, timeout=120)
        return str((await call.code()).name)

    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        return dict(Counter(await asyncio.gather(*(one(channel) for _ in range(count)))))


def _peak_mb(process: Path) -> float:
    lines = (process / "status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# Memory of large gRPC calls",
        "",
        f"`python -m benchmarks.hardening.grpc_memory`: {found['calls']} calls of 8 MB at once; peak memory of "
        "the server above "
        "what it had just before, which is some hundred MB more or less from run to run on a machine with other work. "
        f"{machine['cpu']}, {machine['cores']} cores.",
        "",
        "| bounds | peak, MB | outcomes |",
        "|---|---|---|",
    ]
    for row in found["rows"]:
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(row["outcomes"].items()))
        lines.append(f"| {row['bounds']} | {row['peak_mb']} | {outcomes} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
