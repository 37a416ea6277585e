"""Models through the whole server: POST /predict in a closed loop, one server a model, in interleaved rounds.

The first model is the base of every ratio. With --data-dir the models' files also answer images of the validation
split: accuracy, how often the class is the base's, how far scores move, and how many verdicts change. wrk is the
client and shares the cores; `cpu` is the server's processor time a request, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from server.core.contract import METADATA_KEY

from ..harness import report
from ..harness.closed_loop import add_image, add_rounds, lua, model_file, raw_samples, rotated, table, uploaded, wrk
from ..harness.processes import Server, rss_mb
from ..model.graph import Settings, session

EXAMPLES = """examples:
  python -m benchmarks.speed.models_http --repository models --models awnet-r18 awnet-r18-int8 --data-dir data
  python -m benchmarks.speed.models_http --models awnet/3 awnet/4 --rounds 2 --seconds 1 --out /tmp/versions
  python -m benchmarks.speed.models_http --models awnet-r18 awnet-r18:lone_threads=0
"""
BATCH = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = report.parser("speed.models_http", __doc__, EXAMPLES)
    parser.add_argument("--repository", type=Path, default=report.ROOT / "model_repository", help="[model_repository]")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="NAME[/VERSION][:SETTING=VALUE,...]", help="the first is the base"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="CIFAR-10: compare answers as well")
    parser.add_argument("--images", type=int, default=2000, help="of the validation split [2000]")
    add_image(parser)
    add_rounds(parser, [1, 8])
    report.add_out(parser, "models_http")
    options = parser.parse_args(argv)
    if report.missing("wrk"):
        return 0
    found = {"command": " ".join(["python -m benchmarks.speed.models_http", *argv])} | measure(options)
    if options.data_dir:
        found["answers"] = answers(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def version(options: argparse.Namespace, model: str) -> tuple[str, Path]:
    """The name of a model and its file."""
    name, _, number = model.partition(":")[0].partition("/")
    return name, model_file(options.repository, name, number or "latest")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the report."""
    facts = report.loaded_machine()
    image = uploaded(options.image)
    samples: dict[str, dict[int, list[dict[str, float]]]] = {
        m: {c: [] for c in options.clients} for m in options.models
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_bytes(lua(image))
        servers = {}
        for model in options.models:
            name, file = version(options, model)
            more = dict(one.split("=", 1) for one in model.partition(":")[2].split(",") if one)
            settings = {"repository": options.repository, "model": name, "version": file.parent.name, **more}
            servers[model] = stack.enter_context(Server(folder, drain_seconds=0, **settings))
        for server in servers.values():
            server.wait_ready()
            wrk(server.port, 2, 1.0, script)  # warm, and proof that it answers
        memory = {model: rss_mb(server.pid) for model, server in servers.items()}
        for turn in range(options.rounds):
            for clients in options.clients:
                for model in rotated(options.models, turn):
                    server = servers[model]
                    samples[model][clients].append(wrk(server.port, clients, options.seconds, script, [server.pid]))
    base = samples[options.models[0]]
    return {
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "picture_bytes": len(image),
        "models": table(samples),
        "ratios": {
            model: {str(c): {k: ratio(by[c], base[c], k) for k in ("rps", "cpu_ms")} for c in options.clients}
            for model, by in samples.items()
        },
        "rss_mb": memory,
        "samples": raw_samples(samples),
    }


def ratio(ours: list[dict[str, float]], base: list[dict[str, float]], figure: str) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a[figure] / b[figure] for a, b in zip(ours, base, strict=True))


def answers(options: argparse.Namespace) -> dict[str, Any]:
    """By model: images, accuracy, share of the base's classes, largest change of a score, verdicts that change."""
    from training.data.sets import load_cifar10  # torch, which nothing else here needs

    split = load_cifar10(options.data_dir, download=False).validation.head(options.images)
    images, labels = split.images.numpy(), split.labels.numpy()
    found: dict[str, Any] = {}
    base: Any = None
    for model in options.models:
        _, file = version(options, model)
        opened = session(file.read_bytes(), Settings(1, "all", True))
        points = json.loads(opened.get_modelmeta().custom_metadata_map[METADATA_KEY])["thresholds"]
        batches = np.array_split(images, -(-len(images) // BATCH))
        parts = [opened.run(["logits", "p_type"], {"image": batch}) for batch in batches]
        classes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        classes, scores = classes.argmax(1), scores[:, 0]
        verdicts = sum((scores > point["score"]).astype(int) for point in points.values())
        base = base or (classes, scores, verdicts)
        found[model] = {
            "images": len(images),
            "accuracy": float((classes == labels).mean()),
            "same_class": float((classes == base[0]).mean()),
            "score_moves": float(np.abs(scores - base[1]).max()),
            "verdicts_changed": int((verdicts != base[2]).sum()),
        }
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# Models through the server",
        "",
        f"Made by `{found['command']}`: {machine['cpu']}, {machine['cores']} cores shared by client and servers, "
        f"onnxruntime {machine['onnxruntime']}, load {machine['load_before'][0]:.1f}; {found['picture_bytes']} byte "
        f"image, medians of {found['rounds']} interleaved rounds of {found['seconds']:g} s. CPU: the server's, a "
        "request.",
        "",
        "| clients | model | req/s | over the first | p50 ms | p99 ms | CPU ms | over the first | failed | MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for clients in next(iter(found["models"].values())):
        for model, by in found["models"].items():
            row, over = by[clients], found["ratios"][model][clients]
            lines.append(
                f"| {clients} | {model} | {row['rps']:.0f} | {over['rps']:.2f} | {row['p50_ms']:.2f} | "
                f"{row['p99_ms']:.2f} | {row['cpu_ms']:.2f} | {over['cpu_ms']:.2f} | {row['failed']:.0f} | "
                f"{found['rss_mb'][model]:.0f} |"
            )
    if "answers" in found:
        lines += [
            "",
            "On images of the validation split:",
            "",
            "| model | images | accuracy | class of the first | largest change of the score | verdicts changed |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {model} | {row['images']} | {row['accuracy']:.2%} | {row['same_class']:.2%} | {row['score_moves']:.1e} "
            f"| {row['verdicts_changed']} |"
            for model, row in found["answers"].items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
