"""The server and offline scoring on Ray: what a killed process or node costs, autoscaling, and how fast scoring is.

    serve   two replicas under load, one killed by SIGKILL, three times: requests that failed, and until when
    haproxy the same with Ray's HAProxy in the place of its proxy, told to try again
    killed  `awnet predict --engine ray` of all images, a scorer killed in the middle: the rows, by their ids
    speed   the same of parts of the images, in turns with `awnet predict` in one process with the same cores
    scale   a cluster of two nodes: load makes one replica four, and quiet makes them one again
    node    a cluster of three nodes: one with its replicas is killed under load
    scored  a cluster of three nodes: one with its scorers is killed in the middle of `awnet predict --engine ray`

A section is measured alone, and replaces its like in the result; the others stay.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..harness import report
from ..harness.exchange import fetch, seconds_until
from ..harness.load import loaded, quantile
from ..harness.processes import Process, cpu_seconds, family
from ..harness.ray import SCORER, RayCluster, RayServe, below, variables
from ..harness.waiting import eventually
from . import ray_cluster

EXAMPLES = """examples:
  python -m benchmarks.deployment.ray serve
  python -m benchmarks.deployment.ray node
  python -m benchmarks.deployment.ray killed --images images.parquet --id-column key
  python -m benchmarks.deployment.ray speed --images images.parquet --id-column key
"""
KILLS, PAIRS = 3, 3
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(1 << 18),  # what is to be sent again has to fit
}
PART = 10_000  # images of each run of `speed`
SMALL_PART = 250  # of its results on Ray


def main() -> int:
    parser = report.parser("deployment.ray", __doc__, EXAMPLES)
    add = parser.add_argument
    add("section", choices=("serve", "haproxy", "killed", "speed", "scale", "node", "scored"))
    add("--images", type=Path, help="for killed and speed: Parquet file of encoded images, in its column `image`")
    add("--id-column", default="key", help="of their ids [%(default)s]")
    report.add_out(parser, "ray")
    given = parser.parse_args()
    if given.section in ("killed", "speed") and given.images is None:
        parser.error("--images is needed")
    facts = report.loaded_machine()
    with tempfile.TemporaryDirectory() as folder:
        sections: dict[str, Callable[[], Any]] = {
            "serve": lambda: asyncio.run(serve(Path(folder))),
            "haproxy": lambda: asyncio.run(serve(Path(folder), HAPROXY)),
            "killed": lambda: killed(Path(folder), given.images, given.id_column),
            "speed": lambda: speed(Path(folder), given.images, given.id_column),
            "scale": lambda: asyncio.run(ray_cluster.scale(Path(folder))),
            "node": lambda: asyncio.run(ray_cluster.node(Path(folder))),
            "scored": lambda: ray_cluster.scored(Path(folder)),
        }
        found = sections[given.section]()
    import ray

    path = given.out.with_suffix(".json")
    whole = json.loads(path.read_text("utf-8")) if path.exists() else {"what": "Ray Serve and Ray Data, with faults"}
    load = {"load_after": list(os.getloadavg())}
    whole[given.section] = {"machine": facts | load, "ray": ray.__version__, **found}
    report.conclude(given.out, whole, markdown(whole))
    return 0


async def serve(folder: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Replicas killed under load, one after the other; variables are Ray's."""
    kills = []
    os.environ.update(variables or {})
    with RayCluster(folder, 2) as cluster, RayServe(folder, cluster=cluster) as server:
        server.wait_ready()
        async with loaded(server.port) as load, ray_cluster.clients(server.url) as trying:
            await asyncio.sleep(5)
            for _ in range(KILLS):
                before = set(server.pids())
                victim = min(before)
                flying, at = load.flying, time.monotonic()
                os.kill(victim, signal.SIGKILL)
                seconds = await seconds_until(lambda before=before, victim=victim: answers(server, before, victim), 300)
                await asyncio.sleep(5)
                samples = [sample for sample in load.samples if sample.ended >= at]
                lost = [sample for sample in samples if sample.outcome != "ok"]
                kills.append(
                    {
                        "under_way": flying,
                        "requests": len(samples),
                        "outcomes": dict(Counter(sample.outcome for sample in samples)),
                        "failing_for_seconds": max((sample.ended - at for sample in lost), default=0.0),
                        "replaced_after_seconds": seconds,
                    }
                )
        latency = [1000 * (sample.ended - sample.begun) for sample in load.samples if sample.outcome == "ok"]
    return {
        "replicas": server.replicas,
        "callers": load.keeping + load.opening,
        "kills": kills,
        "requests": len(load.samples),
        "outcomes": dict(load.counts()),
        "p50_ms": quantile(latency, 0.5),
        "p99_ms": quantile(latency, 0.99),
        "clients": trying.summary(),
    }


async def answers(server: RayServe, before: set[int], victim: int) -> bool:
    """Whether a process that was not there before answers, beside all others."""
    now = set(server.pids()) - {victim}
    ports = range(server.metrics_port, server.metrics_port + server.replicas)
    return len(now - before) == 1 and all([b"awnet_" in await fetch(port, "/metrics") for port in ports])


def killed(folder: Path, images: Path, identity: str) -> dict[str, Any]:
    """All images, with a scorer killed once a third of the parts are there."""
    from pyarrow.parquet import read_metadata, read_table

    count = read_metadata(images).num_rows
    out, partial = folder / "out", folder / "out.partial"
    parts = -(-count // 1000)
    begun = time.monotonic()
    with on_ray(folder, images, identity, out) as run:
        eventually(lambda: not run.running or len(list(partial.glob("part-*"))) > parts // 3, 3600, "parts are there")
        there, victims = len(list(partial.glob("part-*"))), below(run.pid, SCORER)
        at = time.monotonic()
        os.kill(victims[0], signal.SIGKILL)
        eventually(lambda: not run.running or len(set(below(run.pid, SCORER)) - {victims[0]}) == len(victims), 300)
        replaced = time.monotonic() - at
        status = run.popen.wait(7200)
        said = run.text().strip().splitlines()[-1]
    asked = read_table(images, columns=[identity]).column(identity).to_pylist()
    rows = read_table(out, columns=["file", "error"])
    rows_of = Counter(rows.column("file").to_pylist())
    return {
        "images": count,
        "scorers": len(victims),
        "parts_when_killed": there,
        "parts": len(list(out.glob("part-*"))),
        "replaced_after_seconds": replaced,
        "status": status,
        "said": said,
        "seconds": time.monotonic() - begun,
        "rows": rows.num_rows,
        "without_answer": rows.num_rows - rows.column("error").null_count,
        "ids_missing": len(set(asked) - rows_of.keys()),
        "ids_more_than_once": sum(number > 1 for number in rows_of.values()),
        "ids_of_no_image": len(rows_of.keys() - set(asked)),
        "in_order": rows.column("file").to_pylist() == asked,
    }


def speed(folder: Path, images: Path, identity: str) -> dict[str, Any]:
    """Parts of the images by both programs in turns; that of Ray takes the first turn of every second pair."""
    from pyarrow.parquet import ParquetFile, write_table

    cores = int(report.machine()["cores"])
    pairs = []
    batches = ParquetFile(images).iter_batches(1000)
    for number in range(PAIRS):
        table = [next(batches) for _ in range(PART // 1000)]
        source, files = folder / f"{number}.parquet", folder / f"images-{number}"
        files.mkdir()
        for batch in table:
            for row, data in enumerate(batch["image"]):
                (files / f"{batch[identity][row].as_py().replace('/', '-')}.png").write_bytes(data.as_py())
        import pyarrow

        write_table(pyarrow.Table.from_batches(table), source, row_group_size=1000)
        turns: dict[str, Callable[[], dict[str, float]]] = {
            "ray": lambda source=source, number=number: ray_run(folder, source, identity, folder / f"ray-{number}"),
            "process": lambda files=files, number=number: process_run(folder, files, folder / f"{number}.jsonl"),
        }
        pairs.append({name: turns[name]() for name in (sorted(turns) if number % 2 else sorted(turns, reverse=True))})
    ratios = {
        key: statistics.median([pair["ray"][key] / pair["process"][key] for pair in pairs]) for key in pairs[0]["ray"]
    }
    return {"images_a_run": PART, "cores": cores, "pairs": pairs, "median_of_ratios_ray_to_process": ratios}


def on_ray(folder: Path, source: Path, identity: str, out: Path, *options: str) -> Process:
    command = [
        sys.executable,
        "-m",
        "awnet",
        "predict",
        "--engine",
        "ray",
        source,
        "--id-column",
        identity,
        "--out",
        out,
    ]
    return Process([*command, *options], folder / f"{out.name}.log", variables(folder))


def ray_run(folder: Path, source: Path, identity: str, out: Path) -> dict[str, float]:
    """Images a second, and processor time of all processes for each, once all scorers are at work, and of the whole."""
    begun = time.time()
    with on_ray(folder, source, identity, out, "--part", str(SMALL_PART)) as run:
        used = cpu_of_all(run)
    ended = time.time()
    if run.popen.returncode != 0:
        raise run.failure()
    written = sorted(path.stat().st_mtime for path in out.glob("part-*"))
    scorers = int(report.machine()["cores"])
    return figures(used, SMALL_PART * (len(written) - scorers), written[scorers - 1], written[-1], begun, ended)


def process_run(folder: Path, files: Path, out: Path) -> dict[str, float]:
    """The same of `awnet predict`, which says its own seconds, without the start."""
    begun = time.time()
    command = [sys.executable, "-m", "awnet", "predict", files, "--out", out, "--concurrency", "16"]
    with Process(command, folder / f"{out.name}.log") as run:
        used = cpu_of_all(run)
    ended = time.time()
    if run.popen.returncode != 0:
        raise run.failure()
    seconds = float(run.text().split(" images in ")[1].split(" s ")[0])
    return figures(used, PART, ended - seconds, ended, begun, ended)


def figures(
    used: list[tuple[float, float]], images: int, first: float, last: float, begun: float, ended: float
) -> dict[str, float]:
    """Of `images` between `first` and `last`, and of all from `begun` to `ended`.

    Args:
        used: moments, and the CPU seconds that were used up to then.
    """
    at_first, at_last = np.interp([first, last], *zip(*used, strict=True))
    return {
        "images_a_second": images / (last - first),
        "images_a_second_whole": PART / (ended - begun),
        "cpu_ms_an_image": 1000 * (at_last - at_first) / images,
        "cpu_ms_an_image_whole": 1000 * used[-1][1] / PART,
    }


def cpu_of_all(run: Process) -> list[tuple[float, float]]:
    """CPU seconds of a program and of all that it starts, four times a second until it ends."""
    used: dict[int, float] = {}
    samples = [(time.time(), 0.0)]
    while run.running:
        for pid in family(run.pid):
            used[pid] = max(used.get(pid, 0.0), cpu_seconds(pid))
        samples.append((time.time(), sum(used.values())))
        time.sleep(0.25)
    return samples


def markdown(whole: dict[str, Any]) -> str:
    about = "`python -m benchmarks.deployment.ray SECTION`; `benchmarks/deployment/ray.py` says what each of them is."
    lines = ["# On Ray", "", about, ""]
    sections = {"serve": of_serve, "haproxy": of_serve, "killed": of_killed, "speed": of_speed, **ray_cluster.SECTIONS}
    for name, lines_of in sections.items():
        if (found := whole.get(name)) is None:
            continue
        machine = found["machine"]
        before, after = (machine[key][0] for key in ("load_before", "load_after"))
        shared = f"{machine['cores']} cores, shared with others: load {before:.1f} to {after:.1f}"
        lines += [f"## {name}", "", f"Ray {found['ray']}; {machine['cpu']}, {shared}.", "", *lines_of(found), ""]
    return "\n".join(lines)


def of_serve(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {number} | {kill['under_way']} | {kill['requests']} | {ray_cluster.listed(kill['outcomes'])} | "
        f"{kill['failing_for_seconds']:.2f} | {kill['replaced_after_seconds']:.1f} |"
        for number, kill in enumerate(found["kills"], 1)
    ]
    beside = [ray_cluster.beside(found["clients"]), ""] if "clients" in found else []
    return [
        f"{found['replicas']} replicas, {found['callers']} callers who pause 20 ms and check each answer: p50 "
        f"{found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms. In all {found['requests']} requests: "
        f"{ray_cluster.listed(found['outcomes'])}; wrong: {found['outcomes'].get('wrong', 0)}.",
        "",
        *beside,
        "| kill | under way | requests since | outcomes | seconds with failures | seconds until replaced |",
        "|---|--:|--:|---|--:|--:|",
        *rows,
    ]


def of_killed(found: dict[str, Any]) -> list[str]:
    counts = ("rows", "ids_missing", "ids_more_than_once", "ids_of_no_image", "without_answer")
    return [
        f"{found['images']} images, {found['scorers']} scorers, one killed by SIGKILL when "
        f"{found['parts_when_killed']} of {found['parts']} parts were there, and replaced after "
        f"{found['replaced_after_seconds']:.0f} s. Status {found['status']} after {found['seconds']:.0f} s: "
        f"`{found['said']}`",
        "",
        "| rows | ids missing | more than once | of no image | without an answer | in the order of the source |",
        "|--:|--:|--:|--:|--:|---|",
        f"| {' | '.join(str(found[name]) for name in counts)} | {'yes' if found['in_order'] else 'no'} |",
    ]


def of_speed(found: dict[str, Any]) -> list[str]:
    columns = {
        "images_a_second": ".0f",
        "images_a_second_whole": ".0f",
        "cpu_ms_an_image": ".2f",
        "cpu_ms_an_image_whole": ".2f",
    }
    rows = [
        f"| {number} | {name} | {' | '.join(format(run[key], form) for key, form in columns.items())} |"
        for number, pair in enumerate(found["pairs"], 1)
        for name, run in sorted(pair.items())
    ]
    ratios = found["median_of_ratios_ray_to_process"]
    return [
        f"{found['images_a_run']} images a run, in turns: `ray` is `awnet predict --engine ray` with "
        f"{found['cores']} scorers of one core each, `process` is `awnet predict` in one process with "
        f"{found['cores']} cores.",
        "",
        "| pair | by | images a second | with start and end | CPU ms an image | with start and end |",
        "|--:|---|--:|--:|--:|--:|",
        *rows,
        f"| median of ratios | ray / process | {' | '.join(f'{ratios[key]:.2f}' for key in columns)} |",
    ]


if __name__ == "__main__":
    sys.exit(main())
