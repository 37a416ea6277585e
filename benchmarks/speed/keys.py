"""What it costs a request that the server asks who sends it, and bounds how much that client may ask.

With no file of keys, with files of some to many; behind proxies; with a rate and a share of the queue, and without.

Each measurement is the CPU time of many calls for a request with the headers of an ordinary client; the cases take
turns, figures are medians and quartiles over the rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from server.access.access import Access
from server.access.addresses import TrustedProxies, client_of
from server.access.caller import Rate
from server.access.rates import QueueShares, Rates
from server.errors import Unauthorized
from server.settings.settings import Settings

from ..harness import report

EXAMPLES = """examples:
  python -m benchmarks.speed.keys            # some ten seconds
"""
COUNTS = (1, 10, 100, 1000)
CALLS = 200  # in one measurement; 1,000 keys make it one of ten milliseconds
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-type", b"image/png"),
    (b"content-length", b"2391"),
]


def main() -> int:
    parser = report.parser("speed.keys", __doc__, EXAMPLES)
    parser.add_argument("--rounds", type=int, default=200, help="[%(default)s]")
    report.add_out(parser, "keys")
    options = parser.parse_args()
    facts = report.loaded_machine()
    with tempfile.TemporaryDirectory() as folder:
        known = {f"{count} keys": requests(Path(folder), count) for count in COUNTS}
        cases = {"no file": asking(Access(Settings(api_keys=None)), b"")} | {
            name: asking(access, key) for name, (access, key) in known.items()
        }
        cases["100 keys, a wrong one sent"] = asking(known["100 keys"][0], made(10_000))
        cases |= bounding()
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, ask in cases.items():
                begun = time.process_time()
                for _ in range(CALLS):
                    ask()
                samples[name].append(1e6 * (time.process_time() - begun) / CALLS)
    found = {
        "what": "CPU time of naming and bounding the caller of a request, microseconds: quartiles",
        "machine": facts,
        "rounds": options.rounds,
        "microseconds": {name: statistics.quantiles(values, n=4) for name, values in samples.items()},
    }
    report.conclude(options.out, found, markdown(found))
    return 0


def made(number: int) -> bytes:
    """A key of the right form."""
    return f"awnet_{number:043d}".encode()


def requests(folder: Path, count: int) -> tuple[Access, bytes]:
    """A server's access by so many keys, and one of them."""
    path = folder / f"{count}.toml"
    tables = [
        f'[keys.k{number}]\nsha256 = "{sha256(made(number)).hexdigest()}"\nscopes = ["predict"]\n'
        for number in range(count)
    ]
    path.write_text("\n".join(tables), "utf-8")
    path.chmod(0o600)
    return Access(Settings(api_keys=path)), made(count // 2)


def asking(access: Access, key: bytes) -> Callable[[], None]:
    """Who sends a request with this key, if any, and may it be answered?"""
    headers = [*HEADERS, (b"authorization", b"Bearer " + key)] if key else HEADERS

    def ask() -> None:
        try:
            access.identify(headers, b"top_k=3").require("predict")
        except Unauthorized:
            return

    return ask


def bounding() -> dict[str, Callable[[], None]]:
    """Where the client is, and what is left of its rate and of its share of the queue."""
    direct, behind = TrustedProxies(), TrustedProxies([ip_network("10.0.0.0/8")])
    chain = [*HEADERS, (b"x-forwarded-for", b"9.9.9.9, 1.1.1.1, 10.0.0.2")]
    unbounded, bounded = Rates(None), Rates(Rate(1e6, 10**6))
    whole, part = QueueShares(256, 1.0), QueueShares(256, 0.5)

    def holding(shares: QueueShares) -> Callable[[], None]:
        def hold() -> None:
            with shares.hold("1.1.1.1", 1):
                pass

        return hold

    return {
        "address, no proxy trusted": lambda: client_of(direct.client("1.1.1.1", HEADERS)) and None,
        "address behind two trusted proxies": lambda: client_of(behind.client("10.0.0.1", chain)) and None,
        "no rate": lambda: unbounded.charge("1.1.1.1", None),
        "rate": lambda: bounded.charge("1.1.1.1", None),
        "no share of the queue": holding(whole),
        "share of the queue": holding(part),
    }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# What knowing and bounding a client costs",
        "",
        f"{found['machine']['cpu']}, load {found['machine']['load_before'][0]:.1f} at the start, {found['rounds']} "
        f"rounds of {CALLS} calls. CPU time for one request, median and quartiles: first of naming its caller by a "
        "file of keys, then of its address, its rate and its share of the queue. Made by `python -m "
        "benchmarks.speed.keys`.",
        "",
        "| what | microseconds |",
        "|---|---|",
    ]
    for name, (low, median, high) in found["microseconds"].items():
        lines.append(f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
