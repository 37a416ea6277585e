"""What less told answers cost an attacker: Square and a boundary attack on /predict, at each of AWNET_ANSWERS.

The bundled model answers over HTTP, and the attacker reads what its JSON documents say and nothing else: numbers,
levels with the order of classes, or class and verdict. Attacks are those of `export.audit.black_box`, on images of the
test split that are answered right and not flagged; a query is one image. The boundary attack needs class and verdict
alone, so it is the same at each level.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from export.audit.black_box import AIMS, Answers, Counts, Found, Pixels, boundary, distances, square
from server.core import answers
from server.core.answers import LEVELS
from training.data.images import to_bytes
from training.data.sets import load_images

from ..harness import report
from ..harness.processes import Server
from .attacks import Client
from .honest_traffic import png

EXAMPLES = """examples:
  AWNET_DATA_DIR=../data python -m benchmarks.guard.answer_levels
  AWNET_DATA_DIR=../data python -m benchmarks.guard.answer_levels --images 8 --queries 50 --out /tmp/levels
"""
EPS = 8  # levels of 8 bits
TOGETHER = 32  # images of one request
CONNECTIONS = 2
BUDGETS = (20, 100, 300)
ABOVE = 1.001  # times the limit: a score of which only the verdict says that it is over it


class Reader:
    """Asks for images and makes what it is told into what an attack climbs along.

    Args:
        port: of a server.
        level: AWNET_ANSWERS of that server.
        classes: how many there are.
    """

    def __init__(self, port: int, level: str, classes: int) -> None:
        self._clients = [Client(port) for _ in range(CONNECTIONS)]
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._level, self._classes = level, classes
        self.asked = 0

    def __call__(self, images: Pixels) -> Answers:
        self.asked += len(images)
        parts = [images[at : at + TOGETHER] for at in range(0, len(images), TOGETHER)]
        shares = [parts[n::CONNECTIONS] for n in range(CONNECTIONS)]
        done = list(self._pool.map(self._ask, self._clients, shares))
        rows = [row for n in range(len(parts)) for row in done[n % CONNECTIONS][n // CONNECTIONS]]
        return Answers(*(np.array(part) for part in zip(*rows, strict=True)))

    def _ask(self, client: Client, parts: list[Pixels]) -> list[list[tuple[list[float], float, float]]]:
        found = []
        for part in parts:
            query = "" if self._level == "verdict" else f"?top_k={self._classes}"
            status, document, _ = client.ask(*map(png, part), query=query)
            assert status == 200, document
            found.append([self.read(result) for result in document["results"]])
        return found

    def read(self, result: Mapping[str, Any]) -> tuple[list[float], float, float]:
        """Logits, score and limit of one result, as far as it tells them."""
        named, judged = result["predictions"], result["adversarial"]
        passes = judged["verdict"] == "clean"
        if self._level == "verdict":
            logits = [0.0] * self._classes
            logits[named[0]["class_id"]] = 1.0
            return logits, 0.0 if passes else 1.0, 0.5
        limit = judged["thresholds"]["suspicious"]
        logits = [0.0] * self._classes
        if self._level == "exact":
            for one in named:
                logits[one["class_id"]] = math.log(max(one["probability"], 1e-30))
            return logits, judged["score"], limit
        for place, one in enumerate(named):
            # Within a level the order of the classes is all that is told.
            logits[one["class_id"]] = math.log(_middle(one["probability_level"])) - 1e-3 * place
        middle = _middle(judged["score_level"])
        return logits, min(middle, limit) if passes else max(middle, ABOVE * limit), limit

    def close(self) -> None:
        self._pool.shutdown()
        for client in self._clients:
            client.close()


def _middle(level: str) -> float:
    return (LEVELS.index(level) + 0.5) / len(LEVELS)  # type: ignore[arg-type]


def main() -> int:
    parser = report.parser("guard.answer_levels", __doc__, EXAMPLES)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("AWNET_DATA_DIR", "data")))
    parser.add_argument("--images", type=int, default=50, help="attacked by each attack [50]")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that the file has already")
    parser.add_argument("--queries", type=int, default=BUDGETS[-1], help=f"of an attack on an image [{BUDGETS[-1]}]")
    report.add_out(parser, "answer_levels")
    options = parser.parse_args()
    test = load_images("cifar10", options.data_dir).test
    images, labels = to_bytes(test.images).numpy(), test.labels.numpy().astype(np.int64)
    found: dict[str, Any] = {"machine": report.loaded_machine(), "eps": EPS, "queries": options.queries, "rows": []}
    if options.resume:
        found = json.loads(options.out.with_suffix(".json").read_text("utf-8"))
    done = [(row["answers"], row["attack"], row["aim"]) for row in found["rows"]]
    with tempfile.TemporaryDirectory() as scratch:
        chosen: Counts | None = None
        for level in get_args(answers.Answers):
            with Server(Path(scratch), answers=level, threads=1, timeout_seconds=120) as server:
                server.wait_ready(180)
                ask = Reader(server.port, level, int(labels.max()) + 1)
                chosen = _chosen(ask, images, labels, options.images) if chosen is None else chosen
                kinds = ("square", "boundary") if level == "verdict" else ("square",)
                for kind, aim in ((kind, aim) for kind in kinds for aim in AIMS if (level, kind, aim) not in done):
                    row = attacked(ask, kind, aim, images[chosen], labels[chosen], options.queries)
                    found["rows"].append({"answers": level, "attack": kind, "aim": aim} | row)
                    report.publish(options.out, found, markdown(found))
                ask.close()
    print(markdown(found))
    return 0


def _chosen(ask: Reader, images: Pixels, labels: Counts, most: int) -> Counts:
    """The first images that are answered right and pass."""
    found: list[int] = []
    for at in range(0, len(images), TOGETHER):
        answer, right = ask(images[at : at + TOGETHER]), labels[at : at + TOGETHER]
        found += [
            at + int(n) for n in np.flatnonzero((answer.logits.argmax(1) == right) & (answer.score <= answer.limit))
        ]
        if len(found) >= most:
            break
    return np.array(found[:most])


def attacked(ask: Reader, kind: str, aim: str, images: Pixels, labels: Counts, queries: int) -> dict[str, Any]:
    """One attack on every image: how many it broke within EPS, and with how many queries."""
    rng, begun, before = np.random.default_rng(0), time.monotonic(), ask.asked
    with tqdm(total=queries * len(images), desc=f"{ask._level}, {kind}, {aim}", unit="query") as bar:

        def counted(tries: Pixels) -> Answers:
            bar.update(len(tries))
            return ask(tries)

        found: Found
        if kind == "square":
            found = square(counted, images, labels, aim, eps=EPS, queries=queries, rng=rng)
        else:
            found = boundary(counted, images, labels, aim, queries=queries, rng=rng)
    near = found.broken & (distances(images, found.images)[0] <= EPS)
    needed = found.queries[near].tolist() if kind == "square" else []  # the other one spends all it has
    return {
        "images": len(images),
        "broken": int(near.sum()),
        "within": {str(most): sum(n <= most for n in needed) for most in BUDGETS if most <= queries and needed},
        "median_queries": statistics.median(needed) if needed else None,
        "median_distance": float(np.median(distances(images, found.images)[0][found.broken])),
        "asked": ask.asked - before,
        "seconds": round(time.monotonic() - begun, 1),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    machine, budgets = found["machine"], [most for most in BUDGETS if most <= found["queries"]]
    lines = [
        "# What less told answers cost an attacker",
        "",
        "`python -m benchmarks.guard.answer_levels`: the bundled model behind `/predict`, "
        f"{found['rows'][0]['images']} "
        "images of the test split that are answered right and pass, at most "
        f"{found['queries']} queries an image, each one an image. Broken is an image with a wrong class (`class`), or "
        f"with a wrong class and the verdict `clean` (`evasion`), within {found['eps']} levels of 255 (L-infinity). "
        "The boundary attack needs no more than class and verdict: it is the same at each level, looks for the nearest "
        f"image and spends all its queries. {machine['cpu']}, {machine['cores']} cores shared with other work.",
        "",
        f"| `answers` | attack | aim | broken | {' | '.join(f'with {most} queries' for most in budgets)} | "
        "median queries of the broken | median distance, levels |",
        f"|---|---|---|---|{'---|' * len(budgets)}---|---|",
    ]
    for row in found["rows"]:
        cells = [
            f"`{row['answers']}`" if row["attack"] == "square" else "any",
            row["attack"],
            row["aim"],
            f"{row['broken']} of {row['images']}",
            *(str(row["within"].get(str(most), "-" if row["attack"] != "square" else 0)) for most in budgets),
            "-" if row["median_queries"] is None else f"{row['median_queries']:g}",
            f"{row['median_distance']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
