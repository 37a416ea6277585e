"""What the worst input found of each kind costs a server, and what a good client beside it sees; before and after.

Two clients send the hostile request over and over for some seconds, a third sends a small good image every 50 ms and
waits for each answer. A server's own CPU time is taken with that of its decoding processes. With `--before`, the same
is asked of the server of another checkout, on the same machine in turns.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..harness import image_files as files
from ..harness.load import quantile
from ..harness.processes import Process, free_port
from ..harness.report import ROOT, add_out, loaded_machine, parser, publish

EXAMPLES = """examples:
  python -m benchmarks.hardening.hostile      some minutes; writes benchmarks/results/hostile.md
  git worktree add --detach ../before 5ba8765 && python -m benchmarks.hardening.hostile --before ../before"""
HOSTILE_CLIENTS, PAUSE_SECONDS, CALL_SECONDS = 2, 0.05, 15.0
SIDE = 32


@dataclass(frozen=True)
class Kind:
    """One kind of hostile request: a path, a content type and a body."""

    name: str
    body: bytes
    path: str = "/predict"
    content_type: str = "application/octet-stream"


def form(images: Sequence[bytes]) -> bytes:
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image + b"\r\n"
        for image in images
    ]
    return b"".join(parts) + b"--B--\r\n"


def transparent(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (side, side)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def kinds() -> list[Kind]:
    """The worst of each kind, as `slow_inputs` and the tests make them."""
    black = (b"\0" + bytes(3 * SIDE)) * SIDE
    deep = files.png(2000, 2000, 16, 2, (b"\4" + bytes(12000)) * 2000, files.chunk(b"tRNS", bytes(6)))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\0\1\2\0" * 16000
    data = files.scan(bytes((SIDE // 8) ** 2 // 4))
    table = files.deflated(black, 600_000)
    stuffed = files.grey_jpeg(SIDE, SIDE, data, before=files.segment(0xE1, exif) * 12)
    segments = files.grey_jpeg(SIDE, SIDE, data, before=files.segment(0xFE, b"") * (1 << 18))
    tables = files.SIGNATURE + files.header(SIDE, SIDE, 8, 2) + files.chunk(b"IDAT", table) + files.chunk(b"IEND", b"")
    texts = files.png(SIDE, SIDE, 8, 2, black, *[files.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 60)
    one_row = files.png(4000, 4000, 8, 6, b"\0" + bytes(16000))
    strings = (
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,3,32,32],"data":[' + b'"",' * 2_700_000 + b'""]}]}'
    )
    many = "multipart/form-data; boundary=B"
    return [
        Kind("progressive JPEG, 3,000 scans, 16 megapixels", files.progressive(4000, 4000, 3000)),
        Kind("progressive JPEG, 19 scans, 16 megapixels", files.progressive(4000, 4000, 19)),
        Kind("JPEG, 262,144 empty comments", segments),
        Kind("JPEG, EXIF of 65,535 entries", stuffed),
        Kind("PNG, one row of 16 megapixels", one_row),
        Kind("PNG, one row of 16 megapixels, 32 in a form", form([one_row] * 32), content_type=many),
        Kind("PNG, 16 bits, a transparent colour, 4 megapixels", deep),
        Kind("PNG, pixel data of 600,000 code tables", tables),
        Kind("PNG, 60 texts of 1 MiB unpacked", texts),
        Kind("WebP, transparent, 16 megapixels", transparent(4000)),
        Kind("WebP, transparent, 16 megapixels, 32 in a form", form([transparent(4000)] * 32), content_type=many),
        Kind("WebP, 65,536 groups of codes", files.code_groups(1024, 1024, 65536, 11)),
        Kind("JSON, 2.7 million empty texts", strings, "/v2/models/awnet/infer", "application/json"),
    ]


class Checkout(Process):
    """The server of a checkout, on a port of its own."""

    def __init__(self, root: Path, log: Path) -> None:
        self.port = free_port()
        environment = {"AWNET_PORT": str(self.port), "AWNET_ADMIN_PORT": "none", "AWNET_POLL_SECONDS": "0"}
        environment |= {"AWNET_SHUTDOWN_SECONDS": "1", "AWNET_DRAIN_SECONDS": "0", "PYTHONPATH": str(root)}
        super().__init__([sys.executable, "-m", "server"], log, environment, root)

    def wait_ready(self) -> None:
        self.answering(f"http://127.0.0.1:{self.port}/v2/health/ready", 600)

    def all_cpu_seconds(self) -> float:
        """With that of its children, ended ones too."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True).stdout
        total = 0.0
        for pid in (self.pid, *map(int, found.split())):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(map(int, fields[11:15] if pid == self.pid else fields[11:13])) / ticks
        return total


async def ask(port: int, kind: Kind) -> str:
    """The status of one answer, or what failed."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                head = f"POST {kind.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind.content_type}\r\n"
                head += f"Content-Length: {len(kind.body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + kind.body)
                line = await reader.readline()
                await reader.read()
                return line.split()[1].decode() if line else "closed"
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return type(error).__name__


async def measure(server: Checkout, kind: Kind, good: Kind, seconds: float) -> dict[str, Any]:
    """One kind against one server."""
    until = time.monotonic() + seconds
    hostile: Counter[str] = Counter()
    begun = server.all_cpu_seconds()

    async def attack() -> None:
        while time.monotonic() < until:
            hostile[await ask(server.port, kind)] += 1
            await asyncio.sleep(0.005)

    waits: list[float] = []
    outcomes: Counter[str] = Counter()

    async def client() -> None:
        await asyncio.sleep(0.2)
        while time.monotonic() < until:
            asked = time.monotonic()
            outcomes[await ask(server.port, good)] += 1
            waits.append(time.monotonic() - asked)
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(client(), *[attack() for _ in range(HOSTILE_CLIENTS)])
    requests = max(1, sum(hostile.values()))
    return {
        "bytes": len(kind.body),
        "answers": dict(hostile),
        "cpu_ms_each": 1000 * (server.all_cpu_seconds() - begun) / requests,
        "good": dict(outcomes),
        "p50_ms": 1000 * statistics.median(waits),
        "p99_ms": 1000 * quantile(waits, 0.99),
        "failed": sum(outcomes.values()) - outcomes["200"],
    }


def once(root: Path, kind: Kind, good: Kind, seconds: float) -> dict[str, Any]:
    """A fresh server of `root`, because some do not survive; how long SIGTERM took it, too."""
    with tempfile.TemporaryDirectory(prefix="awnet-") as folder:
        server = Checkout(root, Path(folder) / "log")
        try:
            server.wait_ready()
            result = asyncio.run(measure(server, kind, good, seconds))
            result["log_kb"] = len(server.text()) // 1024
        finally:
            begun = time.monotonic()
            server.stop(seconds=120)
        result["sigterm_seconds"] = time.monotonic() - begun
    return result


# What happens to one small image between the body and the model, in a checkout with or without `core.decoding`.
SMALL_CASE = """
import asyncio, json, statistics, sys, time
from server.core.images import EncodedImage, Limits
data, limits = open(sys.argv[1], "rb").read(), Limits()
try:
    from server.core.decode_pool import DecodePool
    from server.core.decoding import Decoding
    from server.core.engine import Terms
except ImportError:
    decoding = None
else:
    decoding = Decoding(DecodePool(workers=1, seconds=5, room=1 << 28, max_bytes=1 << 31), 32_000_000)

async def main():
    taken = []
    for _ in range(2000):
        begun = time.thread_time_ns()
        image = EncodedImage(data, limits, 0)
        if decoding:
            await decoding.prepare([image], 32, Terms(time.monotonic() + 10), "client")
        image.pixels(32)
        taken.append(time.thread_time_ns() - begun)
    print(statistics.median(taken) / 1000)

asyncio.run(main())
"""


def small_case(sides: dict[str, Path], pairs: int) -> dict[str, list[float]]:
    """Microseconds of CPU for the small image from file to pixels, in turns: a median of each run and side."""
    image, found = str(ROOT / "examples/ship.png"), {side: [] for side in sides}
    for turn in range(pairs):
        for side in sorted(sides, reverse=bool(turn % 2)):
            command = [sys.executable, "-c", SMALL_CASE, image]
            environment = os.environ | {"PYTHONPATH": str(sides[side])}
            done = subprocess.run(command, cwd=sides[side], env=environment, capture_output=True, text=True, check=True)
            found[side].append(float(done.stdout))
    return found


def listed(answers: dict[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))


def text(report: dict[str, Any], arguments: str) -> str:
    machine = report["machine"]
    load = machine["load_before"][0]
    lines = [
        "# Hostile images, and good clients beside them",
        "",
        f"`{arguments}`. {HOSTILE_CLIENTS} clients send the hostile request over and over, one sends a small",
        f"PNG every {1000 * PAUSE_SECONDS:.0f} ms; each server is fresh. CPU is that of the server and its decoding",
        "processes for each hostile request, those that got no answer among them.",
        f"On {machine['cpu']}, {machine['cores']} cores, load {load:.0f} before: times of a machine that other",
        "work was using; compare the two rows of a kind, which were taken one after the other. A row of 504 or of",
        "no answers has the CPU time that was used by then, and goes on to use more. Decoding processes give way",
        "to all else on the machine, so that large images are answered late on a busy one.",
        "",
        "| kind | KB | server | answers to it | CPU each, ms | good client p50, ms | p99, ms | failed | SIGTERM, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sides in report["kinds"].items():
        for side, r in sides.items():
            lines.append(
                f"| {name} | {r['bytes'] / 1024:,.1f} | {side} | {listed(r['answers'])} | {r['cpu_ms_each']:,.1f} "
                f"| {r['p50_ms']:,.0f} | {r['p99_ms']:,.0f} | {r['failed']} of {sum(r['good'].values())} "
                f"| {r['sigterm_seconds']:.1f} |"
            )
    small = report.get("small", {})
    if len(small) == 2:
        ratios = sorted(now / before for before, now in zip(small["before"], small["now"], strict=True))
        lines += [
            "",
            "## The small case",
            "",
            f"`python -m benchmarks.hardening.hostile --before CHECKOUT --small {len(ratios)}`: CPU time of a "
            "small PNG from",
            f"file to pixels, its estimate included, in {len(ratios)} pairs of runs in turns (a median of 2,000 each):",
            f"before {statistics.median(small['before']):.0f} us, now {statistics.median(small['now']):.0f} us;",
            f"now to before {statistics.median(ratios):.3f} in the median, {ratios[0]:.3f} to {ratios[-1]:.3f}.",
        ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    command_line = parser("hardening.hostile", __doc__, EXAMPLES)
    command_line.add_argument("--before", type=Path, help="a checkout to compare with")
    command_line.add_argument("--seconds", type=float, default=8.0, help="for each kind and server")
    command_line.add_argument("--small", type=int, metavar="PAIRS", help="only the small case, added to the report")
    command_line.add_argument("--resume", action="store_true", help="go on with the kinds that the report lacks")
    add_out(command_line, "hostile")
    options = command_line.parse_args(argv)
    sides = {"before": options.before.resolve()} if options.before else {}
    sides["now"] = ROOT
    command = "python -m benchmarks.hardening.hostile" + (" --before CHECKOUT" if options.before else "")
    if options.small:
        report = json.loads(options.out.with_suffix(".json").read_text())
        report["small"] = small_case(sides, options.small)
        publish(options.out, report, text(report, report.get("command", command)))
        return 0
    good = Kind("good", (ROOT / "examples/ship.png").read_bytes(), content_type="image/png")
    report: dict[str, Any] = {"machine": loaded_machine(), "kinds": {}}
    if options.resume:
        report = json.loads(options.out.with_suffix(".json").read_text())
    report["command"] = command + f" --seconds {options.seconds:g}"
    nobody = Kind("nobody hostile: one more good client", good.body, content_type="image/png")
    for kind in (nobody, *kinds()):
        if kind.name in report["kinds"]:
            continue
        found = {}
        for side, root in sides.items():
            sent = kind
            if kind.content_type == "application/octet-stream":  # by their first bytes; older servers want a type
                first = {b"\x89PN": "image/png", b"\xff\xd8\xff": "image/jpeg"}.get(kind.body[:3], "image/webp")
                sent = Kind(kind.name, kind.body, kind.path, first)
            found[side] = once(root, sent, good, options.seconds)
            print(kind.name, side, json.dumps(found[side]), file=sys.stderr)
        report["kinds"][kind.name] = found
        publish(options.out, report, text(report, report["command"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
