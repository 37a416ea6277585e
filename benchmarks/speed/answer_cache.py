"""What the answer cache saves and costs: `/predict` where none, half and all of the images were asked about before.

Images that were not are all different files of the same pixels, so that decoding and running them costs the same. The
share that was really answered from the cache is read from the server's counters. Beside it: a server without a cache;
one of the checkout that `--before` names; what a look-up costs by itself; and how much more memory a full cache takes
than an empty one, beside what its metric says.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server.core.images import EncodedImage, Limits
from server.service.answer_cache import AnswerCache

from ..harness import report
from ..harness.closed_loop import Figures, add_rounds, lua, medians, ratios, raw_samples, rotated, wrk
from ..harness.exchange import exchange, post
from ..harness.image_files import chunk, segment
from ..harness.load import noise_png
from ..harness.processes import Server, rss_mb

EXAMPLES = """examples:
  git worktree add --detach ../before COMMIT
  python -m benchmarks.speed.answer_cache --before ../before       # some eight minutes
  python -m benchmarks.speed.answer_cache --rounds 1 --seconds 1 --memory 0 --out /tmp/answer_cache
"""
KNOWN, FRESH, ANSWERS = 100, 4000, 1000  # images that come again; others, more than the cache holds
SHARES = (0.0, 0.5, 1.0)
OFF, BEFORE = "off", "before"
SIZES = (2_300, 60_000, 1 << 20, 8 << 20)


def main() -> int:
    parser = report.parser("speed.answer_cache", __doc__, EXAMPLES)
    add_rounds(parser, [1, 8])
    parser.add_argument("--before", type=Path, help="another checkout, without an answer cache")
    parser.add_argument(
        "--memory", type=int, default=20_000, help="answers of the cache whose memory is measured [20000]"
    )
    report.add_out(parser, "answer_cache")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    facts = report.loaded_machine()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            "what": "POST /predict with an answer cache, by the share of images that were asked about before",
            "machine": facts,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "known": KNOWN,
            "fresh": FRESH,
            "answers": ANSWERS,
            "images": {name: measured(options, Path(folder), file) for name, file in files().items()},
            "look_up_us": {str(size): look_up_us(size) for size in SIZES},
            "memory": memory(options.memory, Path(folder)) if options.memory else None,
        }
    report.conclude(options.out, found, markdown(found))
    return 0


def files() -> dict[str, tuple[bytes, bytes]]:
    """Image -> its file up to where a comment may stand, and the rest."""
    png, rng = noise_png(32, 0), np.random.default_rng(0)
    waves = np.sin(np.arange(640) / 40)[None, :, None] * np.cos(np.arange(480) / 55)[:, None, None] * 90 + 120
    photo = np.clip(waves + rng.normal(0, 6, (480, 640, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=85)
    jpeg = buffer.getvalue()
    return {
        f"PNG of 32 pixels, {len(png) / 1000:.0f} kB": (png[:33], png[33:]),
        f"JPEG of 640 x 480, {len(jpeg) / 1000:.0f} kB": (jpeg[:2], jpeg[2:]),
    }


def comments(of_png: bool) -> Iterator[bytes]:
    """A comment for each image: all of one length, all different."""
    for number in range(KNOWN + FRESH):
        text = b"%08d" % number
        yield chunk(b"tEXt", b"Comment\0" + text) if of_png else segment(0xFE, text)


class Scripts:
    """wrk scripts for one image.

    Args:
        folder: receives them.
        file: see `files`.
    """

    def __init__(self, folder: Path, file: tuple[bytes, bytes]) -> None:
        self._path, self._pieces = folder / "post.lua", folder / "pieces"
        pieces = list(comments(file[0].startswith(b"\x89PNG")))
        self._length = len(pieces[0])
        self._pieces.write_bytes(b"".join(pieces))
        mark = b"HERE-STANDS-ONE"
        text = lua(file[0] + mark + file[1]).decode()
        whole, _, self._tail = text.partition("".join(f"\\{byte:03d}" for byte in mark))
        self._start, _, self._head = whole.partition('wrk.body = "')
        self._tail, _, self._rest = self._tail.partition('"\n')
        self._fresh = 0  # of them, the next one: each run goes on where the last one has ended

    def measure(self, port: int, clients: int, seconds: float, share: float, pids: Sequence[int] = ()) -> Figures:
        """One measurement in which `share` of the requests send one of the known images."""
        one = f"pieces:sub(which * {self._length} + 1, (which + 1) * {self._length})"
        self._path.write_text(
            f"""{self._start}
local head, tail = "{self._head}", "{self._tail}"
local pieces = io.open("{self._pieces}", "rb"):read("*a")
local known, fresh, owed = 0, {self._fresh}, 0
function request()
  local which
  owed = owed + {share}
  if owed >= 1 then
    owed, known = owed - 1, (known + 1) % {KNOWN}
    which = known
  else
    fresh = (fresh + 1) % {FRESH}
    which = {KNOWN} + fresh
  end
  return wrk.format(nil, nil, nil, head .. {one} .. tail)
end
{self._rest}"""
        )
        figures = wrk(port, clients, seconds, self._path, pids)
        self._fresh = (self._fresh + round((1 - share) * figures["rps"] * seconds) + clients) % FRESH
        return figures


def measured(options: argparse.Namespace, folder: Path, file: tuple[bytes, bytes]) -> dict[str, Any]:
    """Medians and ratios to the server without a cache, by contestant and number of clients."""
    scripts = Scripts(folder, file)
    with ExitStack() as stack:
        off, on = stack.enter_context(Server(folder)), stack.enter_context(Server(folder, answer_cache=ANSWERS))
        running: dict[str, tuple[Server, float]] = {OFF: (off, 0.0)}
        if options.before is not None:
            running[BEFORE] = stack.enter_context(Server(folder, options.before.resolve())), 0.0
        running |= {str(share): (on, share) for share in SHARES}
        for server, _ in running.values():
            server.wait_ready(180)
        samples: dict[str, dict[int, list[Figures]]] = {n: {c: [] for c in options.clients} for n in running}
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(list(running), turn):
                    server, share = running[name]
                    scripts.measure(server.port, clients, 1.0, 1.0)  # the known images are known afterwards
                    before = asyncio.run(hits(on))
                    figures = scripts.measure(server.port, clients, options.seconds, share, [server.pid])
                    after = asyncio.run(hits(on))
                    images = max(1.0, sum(after) - sum(before))
                    samples[name][clients].append({**figures, "hit_share": (after[0] - before[0]) / images})
    return {
        "medians": {name: {str(c): medians(rounds) for c, rounds in by.items()} for name, by in samples.items()},
        "ratios": {
            name: {str(c): ratios(samples[OFF][c], rounds) for c, rounds in by.items()}
            for name, by in samples.items()
            if name != OFF
        },
        "samples": raw_samples(samples),
    }


async def hits(server: Server) -> tuple[float, float]:
    """Images that its cache has answered, and others."""
    counted = await server.metrics()
    family = "awnet_answer_cache_images_total"
    return counted[f'{family}{{result="hit"}}'], counted[f'{family}{{result="miss"}}']


def look_up_us(size: int) -> float:
    """Microseconds to hash a file of so many bytes and find nothing, the median."""

    class Asked:
        sha256 = "0" * 64

    cache, image, times = AnswerCache(8, 1 << 30), EncodedImage(bytes(size), Limits()), []

    async def look_up() -> None:
        for _ in range(200):
            begun = time.perf_counter()
            await cache.find(Asked, "auto", "192.0.2.1", [image])  # type: ignore[arg-type]
            times.append(time.perf_counter() - begun)

    asyncio.run(look_up())
    return 1e6 * statistics.median(times)


def memory(answers: int, folder: Path) -> dict[str, float]:
    """Megabytes that a server grew by while its cache filled, and what the metric says that the answers take."""
    small = noise_png(32, 0)
    with Server(folder, answer_cache=answers) as server:
        server.wait_ready()

        async def ask(first: int, last: int) -> None:
            async def one(start: int) -> None:
                for number in range(start, last, 8):
                    text = chunk(b"tEXt", b"Comment\0%08d" % number)
                    await exchange(server.port, post(small[:33] + text + small[33:], keep=False), 60)

            await asyncio.gather(*[one(first + turn) for turn in range(8)])

        asyncio.run(ask(answers, answers + 500))  # so that what any server grows by is there
        before = rss_mb(server.pid)
        asyncio.run(ask(0, answers))
        metrics = asyncio.run(server.metrics())
        return {
            "answers": metrics["awnet_answer_cache_answers"],
            "grown_mb": rss_mb(server.pid) - before,
            "told_mb": metrics["awnet_answer_cache_bytes"] / 1e6,
        }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# The answer cache",
        "",
        f"{machine['cpu']}, {machine['cores']} cores shared with wrk and other work, load "
        f"{machine['load_before'][0]:.1f} at the start; {found['rounds']} rounds of {found['seconds']:g} s, one server "
        f"process, the bundled model. A cache of {found['answers']:,} answers; {found['known']} images come again, of "
        f"{found['fresh']:,} others each is another file. "
        "Ratios are to the same server without a cache: the median, and the quartiles. Made by "
        "`python -m benchmarks.speed.answer_cache --before DIR`.",
    ]
    for image, by in found["images"].items():
        lines += [
            "",
            f"## {image}",
            "",
            "| server | clients | answered from the cache | requests a second | CPU time a request, ms | p50, ms | "
            "CPU time, ratio | requests a second, ratio |",
            "|---|--:|--:|--:|--:|--:|---|---|",
        ]
        for name, rows in by["medians"].items():
            label = {OFF: "no cache", BEFORE: "before there was one"}.get(name) or f"{100 * float(name):.0f} % known"
            for clients, row in rows.items():
                ratio = by["ratios"].get(name, {}).get(clients)
                cells = (
                    [f"{r[1]:.3f} ({r[0]:.3f} to {r[2]:.3f})" for r in (ratio["cpu_ms"], ratio["rps"])]
                    if ratio
                    else ["", ""]
                )
                share = f"{100 * row['hit_share']:.1f} %" if name not in (OFF, BEFORE) else ""
                lines.append(
                    f"| {label} | {clients} | {share} | {row['rps']:.0f} | {row['cpu_ms']:.3f} | {row['p50_ms']:.2f} | "
                    f"{cells[0]} | {cells[1]} |"
                )
    sizes = ", ".join(f"{int(size) / 1000:g} kB {us:.0f} µs" for size, us in found["look_up_us"].items())
    lines += ["", f"A look-up alone, hash included, by the size of the file: {sizes}; over 64 KiB on another thread."]
    if found["memory"]:
        held = found["memory"]
        lines += [
            "",
            f"Memory: a cache of {held['answers']:,.0f} answers made the process {held['grown_mb']:.0f} MB larger; "
            f"`awnet_answer_cache_bytes` says {held['told_mb']:.0f} MB.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
