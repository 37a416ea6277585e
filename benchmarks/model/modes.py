"""What an operating mode costs: CPU time and memory of a session that is cut down to one mode, beside the whole model.

In one thread, without a server, as a worker of the server runs a batch. All sessions of a model take turns, so that a
noisy moment hits them alike; times are CPU seconds of the thread, so that whatever else runs on the machine hardly
counts. `whole` computes every output of the file for any of them: that is what ONNX Runtime does without cutting.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.core import contract
from server.core.engine import outputs_of
from server.engines.onnx_cut import cut

from ..harness import report
from ..harness.processes import rss_mb
from ..harness.report import conclude

EXAMPLES = """examples:
  python -m benchmarks.model.modes                            the bundled model
  python -m benchmarks.model.modes --onnx A/model.onnx B/model.onnx --turns 20 --out /tmp/modes
"""
BATCHES = (1, 8, 32)


def main(arguments: list[str] | None = None) -> int:
    parser = report.parser("model.modes", __doc__, EXAMPLES)
    parser.add_argument("--onnx", type=Path, nargs="+", metavar="FILE", help="model files [the newest bundled one]")
    parser.add_argument("--turns", type=int, default=200, help="of all sessions, for each batch size [200]")
    report.add_out(parser, "modes")
    options = parser.parse_args(arguments)
    files = options.onnx or [report.bundled_model() / "model.onnx"]
    facts = report.loaded_machine()
    found = {"machine": facts, "turns": options.turns, "models": [measure(path, options) for path in files]}
    conclude(options.out, found, markdown(found))
    return 0


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of each session of one file."""
    data = path.read_bytes()
    whole, seconds, memory = opened(data)
    promise = contract.parse(whole.get_modelmeta().custom_metadata_map[contract.METADATA_KEY])
    rows: dict[str, dict[str, Any]] = {"whole": {"bytes": len(data), "load_seconds": seconds, "mb": memory}}
    runs = {"whole": (whole, [output.name for output in whole.get_outputs()])}
    for mode in promise.modes:
        part = cut(data, outputs_of(mode))
        session, seconds, memory = opened(part)
        rows[mode] = {"bytes": len(part), "load_seconds": seconds, "mb": memory}
        runs[mode] = (session, list(outputs_of(mode)))
    for batch in BATCHES:
        images = np.ascontiguousarray(promise.golden.image[np.arange(batch) % len(promise.golden.image)])
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(options.turns):
            names = list(runs)
            for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                session, outputs = runs[name]
                begun = time.thread_time()
                session.run(outputs, {"image": images})
                times[name].append(time.thread_time() - begun)
        for name, taken in times.items():
            rows[name][f"ms_{batch}"] = 1000 * statistics.median(taken)
            pairs = [one / other for one, other in zip(taken, times["whole"], strict=True)]
            rows[name][f"of_whole_{batch}"] = statistics.median(pairs)
    mixing = promise.mixing.kind
    sha256 = hashlib.sha256(data).hexdigest()
    recipe = promise.provenance.get("recipe")
    return {"file": path.as_posix(), "sha256": sha256, "recipe": recipe, "mixing": mixing, "sessions": rows}


def opened(data: bytes) -> tuple[ort.InferenceSession, float, float]:
    """A session as the server's, the CPU seconds that it took to open, and the memory that it keeps."""
    gc.collect()
    before, begun = rss_mb(os.getpid()), time.process_time()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = False
    session = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    return session, time.process_time() - begun, rss_mb(os.getpid()) - before


def markdown(found: dict[str, Any]) -> str:
    """The same for people."""
    machine = found["machine"]
    columns = [f"ms at batch {b} | of whole" for b in BATCHES]
    lines = [
        "# What an operating mode costs",
        "",
        f"`python -m benchmarks.model.modes --turns {found['turns']} --onnx` and the files below, on "
        f"{machine['cpu']}, ONNX "
        f"Runtime {machine['onnxruntime']}, one thread; medians of CPU time. `whole` computes every output.",
    ]
    for model in found["models"]:
        lines += [
            "",
            f"## {model['file']}: {model['recipe']}, mixing {model['mixing']}, sha256 {model['sha256'][:12]}",
            "",
            f"| session | {' | '.join(columns)} | bytes of its model | load, s |",
            f"|{'---|' * (2 * len(BATCHES) + 3)}",
        ]
        for name, row in model["sessions"].items():
            cells = [f"{row[f'ms_{b}']:.2f} | {row[f'of_whole_{b}']:.2f}" for b in BATCHES]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['bytes']} | {row['load_seconds']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
