"""Where a small image's request spends its time: by thread, by part of the event loop, and each stage alone.

Under load: CPU time a request of the event loop's thread (in the kernel, which is sockets and waking others; outside of
it) and of the other threads, which run the model; how often threads were put off or waited; how full
batches were, and the stages as `/metrics` has them. Of the event loop, part by part: `harness.loop_parts`. Alone: the
fastest of many calls. `--before` measures another checkout too, in turns with this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..harness import loop_parts, report, stage_times
from ..harness.closed_loop import Figures, add_image, add_rounds, lua, medians, raw_samples, rotated, uploaded, wrk
from ..harness.exchange import exposition
from ..harness.processes import Server

EXAMPLES = """examples:
  python -m benchmarks.speed.stages
  git worktree add --detach ../before COMMIT
  python -m benchmarks.speed.stages --before ../before --rounds 20
  python -m benchmarks.speed.stages --before ../before --alone --out benchmarks/results/event_loop
"""
TURNS = 3  # of the event loop's parts; the fastest counts

ROWS = {
    "requests a second": ("rps", 0),
    "CPU time a request, ms": ("cpu_ms", 3),
    "- event loop, outside the kernel": ("loop_user_ms", 3),
    "- event loop, in the kernel: sockets, waking others": ("loop_kernel_ms", 3),
    "- other threads: the model, and images that are not small": ("others_ms", 3),
    "times a thread waited, a request": ("waits", 2),
    "times a thread was put off, a request": ("put_off", 2),
    "images a batch": ("batch", 2),
    "decode, ms": ("decode_ms", 3),
    "queue, ms": ("queue_ms", 3),
    "inference, ms": ("inference_ms", 3),
}
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = report.parser("speed.stages", __doc__, EXAMPLES)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    parser.add_argument("--before", type=Path, help="another checkout [none]")
    parser.add_argument("--version", default="latest", help="of the model, where the newest are not the same [latest]")
    parser.add_argument(
        "--alone", action="store_true", help="nothing under load, which other work on the machine moves"
    )
    report.add_out(parser, "stages")
    options = parser.parse_args()
    if options.alone:
        options.clients = []
    elif report.missing("wrk"):
        return 0
    folders = {"before": options.before.resolve()} if options.before else {}
    folders["now"] = report.ROOT
    facts = report.loaded_machine()
    samples: dict[str, dict[int, list[Figures]]] = {name: {c: [] for c in options.clients} for name in folders}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (image := scratch / "image").write_bytes(uploaded(options.image))
        alone = {name: _alone(folder, image, options.version) for name, folder in folders.items()}
        parts = _parts(folders, image)
        (script := scratch / "post.lua").write_bytes(lua(image.read_bytes()))
        servers = {}
        for name, folder in folders.items() if options.clients else ():
            servers[name] = server = stack.enter_context(Server(scratch, folder, version=options.version))
            server.wait_ready(180)
            wrk(server.port, 2, 1.0, script)
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(list(folders), turn):
                    samples[name][clients].append(_loaded(servers[name], clients, options.seconds, script))
    found = {
        "what": "POST /predict of one small image by stages",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load": {name: {str(c): medians(rounds) for c, rounds in by.items()} for name, by in samples.items()},
        "loop_us": parts,
        "alone_us": alone,
        "samples": raw_samples(samples),
    }
    report.conclude(options.out, found, markdown(found))
    return 0


def _alone(folder: Path, image: Path, version: str) -> dict[str, float]:
    """Microseconds of each stage, in another process, because it imports from `folder`."""
    models = folder / "model_repository/awnet"
    newest = max(int(path.name) for path in models.iterdir() if path.name.isdigit())
    model = models / (str(newest) if version == "latest" else version) / "model.onnx"
    return _in(folder, stage_times.__file__, str(image), str(model))


def _parts(folders: Mapping[str, Path], image: Path) -> dict[str, dict[str, float]]:
    """Microseconds of each part of the event loop's work, in the turn in which all together took least."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for turn in range(TURNS):
        for name in rotated(list(folders), turn):
            found[name].append(_in(folders[name], loop_parts.__file__, str(image)))
    return {name: min(turns, key=lambda turn: turn[loop_parts.TOTAL]) for name, turns in found.items()}


def _in(folder: Path, *command: str) -> dict[str, float]:
    """What a program prints that runs on the checkout in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    given = [sys.executable, *command]
    done = subprocess.run(given, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _loaded(server: Server, clients: int, seconds: float, script: Path) -> Figures:
    """One measurement under load."""
    port, pid = server.port, server.pid
    threads, told = _threads(pid), _metrics(port)
    found = wrk(port, clients, seconds, script, [pid])
    counted = {name: value - told.get(name, 0.0) for name, value in _metrics(port).items()}
    answered = max(1.0, counted['awnet_stage_seconds_count{stage="inference"}'])
    spent = {"loop": [0.0] * 4, "others": [0.0] * 4}
    for thread, after in _threads(pid).items():
        which = spent["loop" if thread == str(pid) else "others"]
        for place, (old, new) in enumerate(zip(threads.get(thread, (0.0,) * 4), after, strict=True)):
            which[place] += (new - old) / answered
    loop, others = spent["loop"], spent["others"]
    return found | {
        "loop_user_ms": 1000 * loop[0],
        "loop_kernel_ms": 1000 * loop[1],
        "others_ms": 1000 * (others[0] + others[1]),
        "waits": loop[2] + others[2],
        "put_off": loop[3] + others[3],
        "batch": counted["awnet_batch_images_sum"] / max(1.0, counted["awnet_batch_images_count"]),
        **{
            f"{stage}_ms": 1000 * counted[f'awnet_stage_seconds_sum{{stage="{stage}"}}'] / answered
            for stage in ("decode", "queue", "inference")
        },
    }


def _threads(pid: int) -> dict[str, tuple[float, ...]]:
    """Thread -> seconds outside and in the kernel, how often it has waited, how often it was put off for another."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # ended meanwhile
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            switches = (float(status[f"{kind}_ctxt_switches"]) for kind in ("voluntary", "nonvoluntary"))
            found[task.name] = (int(fields[11]) / _TICKS, int(fields[12]) / _TICKS, *switches)
    return found


def _metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return exposition(answer.read())


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    load, alone = found["load"], found["alone_us"]
    names, machine = list(load), found["machine"]
    told = [
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} at the start.",
        f"Under load: cores shared with wrk, medians of {found['rounds']} rounds of {found['seconds']:g} s, the "
        "checkouts in turns; CPU time hangs less on what else runs than requests a second do.",
        "Of the event loop's own work: one request after the other in one process, without socket and network, images "
        "decoded on it; measuring makes its parts a little longer, so that together they are more than all.",
        f"Made by `python -m benchmarks.speed.stages{' --before DIR' if len(names) > 1 else ''}"
        f"{'' if load['now'] else ' --alone'}`.",
    ]
    if not load["now"]:
        del told[1]
    lines = ["# Where a request's time goes", "", " ".join(told)]
    for clients in load[names[0]]:
        lines += ["", f"## {clients} clients" if clients != "1" else "## One client", ""]
        lines += [f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for row, (figure, digits) in ROWS.items():
            lines.append(f"| {row} | {' | '.join(f'{load[name][clients][figure]:.{digits}f}' for name in names)} |")
    for title, figures in (
        ("The event loop, us a request", found["loop_us"]),
        ("Each stage alone, us an image", alone),
    ):
        lines += ["", f"## {title}", "", f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for stage in figures[names[-1]]:
            cells = [f"{figures[name][stage]:.1f}" if stage in figures[name] else "" for name in names]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
