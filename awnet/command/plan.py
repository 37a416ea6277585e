"""`awnet plan`: how many replicas a load needs, what they cost, and which latencies to expect.

It serves the load in virtual time: replicas with the server's own scheduler, cores that their threads share, a
balancer before them. What a request costs was measured: on the machine that the package names, or with --measure on
yours. The least number of replicas that keeps the promise is searched; --spare ones come on top.

With --measure PID a running server, one process on this machine, is asked for half a minute, and what its threads spend
is written to --out, for --times.

Default prices are in US dollars: AWS Fargate, Linux/x86, us-east-1, on demand, March 2026. Costs are in the currency of
the prices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..planning.balancers import BALANCERS
from .arrivals import KINDS

if TYPE_CHECKING:
    from ..planning.sizing import Level
    from ..planning.times import ServiceTimes

VCPU_HOUR, GB_HOUR = 0.04048, 0.004445  # US dollars: AWS Fargate, Linux/x86, us-east-1, on demand, March 2026
MEASURED_SECONDS = 30.0

EXAMPLES = """examples:
  awnet plan --rate 100
  awnet plan --rate 10000 --p99-ms 50 --cores 4 --spare 2
  awnet plan --rate 2000 --arrivals bursts --balancer random --vcpu-hour 0.031 --gb-hour 0.004
  awnet plan --measure "$(pgrep -fo 'awnet serve')" --url http://127.0.0.1:8000 --out times.json
  awnet plan --rate 100 --times times.json

exit status: 0 planned or measured, 1 no number of replicas keeps the promise, 2 nothing was begun, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet plan`."""
    made = argparse.ArgumentParser(
        "awnet plan",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--rate", type=float, metavar="R", help="requests a second on average, of one image each")
    what.add_argument("--measure", type=int, metavar="PID", help="measure the server that is this process")
    load = made.add_argument_group("the load")
    load.add_argument(
        "--arrivals",
        choices=KINDS,
        default="poisson",
        help="how requests come: at random, evenly, or all of a second's at its beginning (default: poisson)",
    )
    load.add_argument("--p99-ms", type=float, default=50.0, help="99 %% are answered within this time (default: 50)")
    front = made.add_argument_group("a replica")
    front.add_argument("--cores", type=int, default=2, help="cores of each (default: 2)")
    front.add_argument(
        "--workers", type=int, default=1, help="processes of each, as awnet serve --workers (default: 1)"
    )
    front.add_argument("--max-batch", type=int, default=8, help="as AWNET_MAX_BATCH (default: 8)")
    front.add_argument("--queue-capacity", type=int, default=256, help="as AWNET_QUEUE_CAPACITY (default: 256)")
    front.add_argument(
        "--times", type=Path, metavar="FILE", help="what --measure wrote (default: those of the package)"
    )
    fleet = made.add_argument_group("all of them")
    fleet.add_argument(
        "--balancer",
        choices=BALANCERS,
        default="least",
        help="who gets a request: the one with fewest under way (haproxy's leastconn), each in turn, any (a Service of "
        "Kubernetes), the emptier of two drawn at random (default: least)",
    )
    fleet.add_argument(
        "--busy", type=float, default=0.8, help="most of the cores' time that is used, as a share (default: 0.8)"
    )
    fleet.add_argument("--spare", type=int, default=0, help="replicas that may be missing (default: 0)")
    fleet.add_argument(
        "--vcpu-hour", type=float, default=VCPU_HOUR, help=f"price of a vCPU hour (default: {VCPU_HOUR})"
    )
    fleet.add_argument("--gb-hour", type=float, default=GB_HOUR, help=f"price of a GB hour (default: {GB_HOUR})")
    made.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    made.add_argument("--url", metavar="URL", help="with --measure: the server (default: http://127.0.0.1:8000)")
    made.add_argument("--image", type=Path, help="with --measure: what is sent (default: a bundled example)")
    made.add_argument("--out", type=Path, metavar="FILE", help="the plan, or what was measured, as JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        return _plan(given) if given.measure is None else _measure(given)
    except ValueError as error:  # of options, paths and files
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _plan(given: argparse.Namespace) -> int:
    """Raises ValueError where nothing can be begun."""
    for name, least, most in (
        ("rate", 0.001, 1e7),
        ("p99_ms", 0.001, 60_000),
        ("cores", 1, 1024),
        ("workers", 1, given.cores),
        ("max_batch", 1, 1024),
        ("queue_capacity", 1, 1_000_000),
        ("busy", 0.01, 0.95),
        ("spare", 0, 1000),
        ("vcpu_hour", 0, 1e6),
        ("gb_hour", 0, 1e6),
    ):
        if not least <= getattr(given, name) <= most:
            option, top = name.replace("_", "-"), "--cores" if name == "workers" else f"{most:,.10g}"
            raise ValueError(f"--{option} must be {least:g} to {top}")
    if given.url or given.image:
        raise ValueError("--url and --image are for --measure")
    from ..planning import times as service_times
    from ..planning.replica import Shape
    from ..planning.sizing import Goal, Load, Price, million, month, smallest
    from .arrivals import arrivals

    times = service_times.read(given.times or service_times.BUNDLED)
    shape = Shape(given.cores, given.workers, given.max_batch, given.queue_capacity)
    load = Load(given.rate, lambda rate, s: arrivals(given.arrivals, rate, s, given.seed), given.balancer, given.seed)
    found, tried = smallest(load, times, shape, Goal(given.p99_ms / 1000, given.busy), _said)
    document: dict[str, Any] = {
        "rate": given.rate,
        "arrivals": given.arrivals,
        "p99_ms": given.p99_ms,
        "balancer": given.balancer,
        "seed": given.seed,
        "replica": {
            "cores": shape.cores,
            "workers": shape.workers,
            "max_batch": shape.max_batch,
            "queue_capacity": shape.capacity,
        },
        "times": dict(times.about),
        "tried": [_level(level) for level in tried],
        "plan": None,
    }
    if found:
        price = Price(given.vcpu_hour, given.gb_hour)
        count = found.replicas + given.spare
        document["plan"] = {
            **_level(found),
            "spare": given.spare,
            "vcpus": count * shape.cores,
            "memory_mb": round(count * shape.workers * times.memory_mb),
            "month": round(month(count, times, shape, price), 2),
            "million_images": round(million(count, given.rate, times, shape, price), 4),
            "vcpu_hour": price.vcpu,
            "gb_hour": price.gigabyte,
        }
    _write(given.out, document)
    print(summary(document))
    return 0 if found else 1


def summary(document: dict[str, Any]) -> str:
    """The plan for people."""
    front, plan, times = document["replica"], document["plan"], document["times"]
    asked = f"{document['rate']:,g} requests a second ({document['arrivals']}), 99 % within {document['p99_ms']:g} ms"
    lines = [
        f"{asked}, balancer: {document['balancer']}",
        f"times     {times.get('told', 'of a file that does not say whose')}",
    ]
    if plan is None:
        best = document["tried"][-1]
        lines += [
            f"replicas  no number is enough: {best['replicas']} have p99 {best['p99_ms']:.1f} ms and are "
            f"{best['busy']:.0%} busy"
        ]
        return "\n".join(lines)
    spare = f" and {plan['spare']} spare" if plan["spare"] else ""
    processes = f", {front['workers']} workers each" if front["workers"] > 1 else ""
    lines += [
        f"replicas  {plan['replicas']}{spare}, of {front['cores']} cores{processes}: {plan['vcpus']} vCPU, "
        f"{plan['memory_mb']:,} MB",
        f"latency   p50 {plan['p50_ms']:.1f} ms, p99 {plan['p99_ms']:.1f} ms, {plan['refused']:.2%} refused",
        f"load      cores {plan['busy']:.0%} busy, {plan['batch']:.1f} images a batch",
        f"cost      {plan['month']:,.2f} a month, {plan['million_images']:.4f} a million images "
        f"({plan['vcpu_hour']:g} a vCPU hour, {plan['gb_hour']:g} a GB hour)",
    ]
    return "\n".join(lines)


def _level(level: Level) -> dict[str, Any]:
    return {
        "replicas": level.replicas,
        "p50_ms": round(1000 * level.p50, 3),
        "p99_ms": round(1000 * level.p99, 3),
        "refused": round(level.refused, 5),
        "busy": round(level.busy, 4),
        "batch": round(level.batch, 2),
    }


def _said(level: Level) -> None:
    """While the search goes on."""
    if sys.stderr.isatty():
        print(f"  {level.replicas} replicas: p99 {1000 * level.p99:.1f} ms", file=sys.stderr)


def _measure(given: argparse.Namespace) -> int:
    """Raises ValueError where nothing can be measured."""
    if given.out is None:
        raise ValueError("--measure needs --out FILE")
    if not given.out.parent.is_dir():  # known before half a minute has gone
        raise ValueError(f"--out {given.out}: no such folder")
    if given.times:
        raise ValueError("--times is for a plan; --measure makes such a file")
    from ..planning.times import written

    times = _times(given)
    _write(given.out, written(times))
    capacity = times.capacity(1, given.max_batch)
    print(f"{given.out}: one core answers {capacity:.0f} requests a second at most; awnet plan --times {given.out}")
    return 0


def _times(given: argparse.Namespace) -> ServiceTimes:
    import platform
    from datetime import UTC, datetime
    from urllib.parse import urlsplit

    from server.core.bundled import EXAMPLES

    from ..planning.asking import Asker, post
    from ..planning.measuring import measured

    url = given.url or "http://127.0.0.1:8000"
    parsed = urlsplit(url)
    try:
        port = parsed.port or 80
    except ValueError:
        raise ValueError(f"--url {url}: no port") from None
    if parsed.scheme != "http" or not parsed.hostname:
        raise ValueError(f"--url {url}: --measure asks over http:// on this machine")
    image = given.image or EXAMPLES / "cat.png"
    try:
        data = image.read_bytes()
    except OSError as error:
        raise ValueError(f"--image {image}: {error.strerror}") from None
    day = datetime.now(UTC).date().isoformat()
    about = {"told": f"measured {day}, Python {platform.python_version()}", "image_bytes": len(data)}

    request = post("/predict", data, {"Content-Type": "application/octet-stream"})
    try:
        with Asker([(str(parsed.hostname), port)], request) as asker:
            return measured(asker, given.measure, url, MEASURED_SECONDS, about, progress=_measuring)
    except OSError as error:
        raise ValueError(f"{url}: {error.strerror or error}") from None


def _measuring(share: float) -> None:
    """While the server is asked."""
    if sys.stderr.isatty():
        print(f"  measured: {share:.0%}", file=sys.stderr)


def _write(out: Path | None, document: dict[str, Any]) -> None:
    """Whole or not at all. Raises ValueError."""
    if out is None:
        return
    import orjson

    from domain.files import replace

    text = orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"
    try:
        if out.exists() and not out.is_file():  # /dev/stdout
            out.write_bytes(text)
        else:
            replace(out, text)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}") from None
