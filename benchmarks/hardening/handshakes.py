"""What a new connection costs the event loop, and what a good client sees beside one that opens and drops handshakes.

The attacker is a process that knows no cryptography: it sends a recorded ClientHello, reads the first bytes of what the
server signed, and hangs up; over plain HTTP it connects and hangs up. The good client is at another address, and asks
over one connection that it keeps; what it sees is held to what it saw alone just before.
"""

from __future__ import annotations

import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.load import quantile
from ..harness.processes import Server

EXAMPLES = """examples:
  python -m benchmarks.hardening.handshakes
  python -m benchmarks.hardening.handshakes --seconds 3 --rounds 2 --out /tmp/handshakes
"""
LIMITS = {"none": {"connections_per_second": 0, "connections_per_second_per_client": 0}, "defaults": {}}
KINDS = {"plain": [], "P-256": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "RSA 2048": ["rsa:2048"]}
GOOD, ATTACKER = "127.0.0.1", "127.0.0.9"
EACH = 400  # connections of the measurement of one

# Arguments: port, file with what is sent first. Says a line a second: connections that it opened so far.
FLOOD = """
import socket, sys, time
port, hello = int(sys.argv[1]), open(sys.argv[2], "rb").read()
opened, printed = 0, time.monotonic()
while True:
    try:
        with socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.9", 0)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
            if hello:
                one.sendall(hello)
                if not one.recv(1):
                    continue  # it hung up
        opened += 1
    except OSError:
        pass
    if time.monotonic() - printed > 0.2:
        printed = time.monotonic()
        print(opened, flush=True)
"""


def main() -> int:
    parser = report.parser("hardening.handshakes", __doc__, EXAMPLES)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase, alone and beside [5]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--attackers", type=int, default=8, help="processes at one address [8]")
    report.add_out(parser, "handshakes")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": report.loaded_machine(),
        "attackers": options.attackers,
        "rounds": options.rounds,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for kind, key in KINDS.items():
            files = _certificate(Path(scratch), key) if key else {}
            (hello := Path(scratch) / "hello").write_bytes(_client_hello() if key else b"")
            for limits, settings in LIMITS.items():
                with Server(Path(scratch), **files, **settings) as server:
                    _until_it_answers(server, bool(key))
                    row = {"connections": kind, "limits": limits}
                    if limits == "none":
                        row["loop_ms_each"] = round(1000 * _cost(server, bool(key)), 3)
                    found["rows"].append(row | _beside(server, bool(key), hello, options))
                report.publish(options.out, found, markdown(found))
    print(markdown(found))
    return 0


def _certificate(folder: Path, key: list[str]) -> dict[str, Path]:
    made = {"tls_certificate": folder / "it.pem", "tls_key": folder / "it.key"}
    command = ["openssl", "req", "-x509", "-newkey", *key, "-noenc", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(made["tls_key"]), "-out", str(made["tls_certificate"])]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return made


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        _context().wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


class Good:
    """A client that keeps its connection."""

    def __init__(self, port: int, secure: bool) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30, (GOOD, 0))
        if secure:
            self._socket = _context().wrap_socket(self._socket)

    def ask(self) -> float:
        """Seconds of one request."""
        begun = time.perf_counter()
        self._socket.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert self._socket.recv(65536).startswith(b"HTTP/1.1 200")
        return time.perf_counter() - begun

    def close(self) -> None:
        self._socket.close()


def _until_it_answers(server: Server, secure: bool) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            Good(server.port, secure).ask()
            return
        except (OSError, AssertionError):
            if time.monotonic() > end:
                raise server.failure() from None
            time.sleep(0.1)


def _loop_seconds(server: Server) -> float:
    """CPU time of the thread that runs the event loop."""
    fields = Path(f"/proc/{server.pid}/task/{server.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cost(server: Server, secure: bool) -> float:
    """CPU seconds of the loop for one connection that is opened and closed."""
    context, before = _context(), _loop_seconds(server)
    for _ in range(EACH):
        with socket.create_connection(("127.0.0.1", server.port), 30) as one:
            if secure:
                context.wrap_socket(one).close()
    time.sleep(0.5)
    return (_loop_seconds(server) - before) / EACH


@contextmanager
def _flood(server: Server, hello: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", FLOOD, str(server.port), str(hello)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.wait()


def _beside(server: Server, secure: bool, hello: Path, options: Any) -> dict[str, Any]:
    """The good client alone and beside the attacker, by turns; the loop's share that went into it."""
    alone, beside, shares, opened = [], [], [], 0
    good = Good(server.port, secure)
    for _ in range(options.rounds):
        alone += _asked(good, options.seconds)
        with _flood(server, hello, options.attackers) as running:
            time.sleep(2.5)  # what an address may do at once is over
            before, begun = _loop_seconds(server), time.monotonic()
            beside += _asked(good, options.seconds)
            shares.append((_loop_seconds(server) - before) / (time.monotonic() - begun))
        for one in running:
            assert one.stdout is not None
            lines = one.stdout.read().split()
            opened += int(lines[-1]) if lines else 0
    good.close()
    return {
        "alone_p50_ms": round(1000 * quantile(alone, 0.5), 2),
        "alone_p99_ms": round(1000 * quantile(alone, 0.99), 2),
        "beside_p50_ms": round(1000 * quantile(beside, 0.5), 2),
        "beside_p99_ms": round(1000 * quantile(beside, 0.99), 2),
        "requests_beside": len(beside),
        "opened_per_second": round(opened / options.rounds / (options.seconds + 2.5), 1),
        "loop_share": round(statistics.median(shares), 3),
    }


def _asked(good: Good, seconds: float) -> list[float]:
    """Seconds of requests 5 ms apart."""
    end, taken = time.monotonic() + seconds, []
    while time.monotonic() < end:
        taken.append(good.ask())
        time.sleep(0.005)
    return taken


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# New connections",
        "",
        f"`python -m benchmarks.hardening.handshakes`: {found['attackers']} processes at one address open "
        "connections as fast as "
        "they can and drop them (over TLS when the server has signed), beside a client at another address that keeps "
        f"its connection; {found['rounds']} rounds, alone and beside by turns. *Loop*: CPU time of the event loop's "
        f"thread. {machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} before: attackers, "
        "good client and server share them, so compare rows, not milliseconds.",
        "",
        "| connections | limits | loop, ms a connection | opened a second | loop, share of a core | "
        "good client p50 alone -> beside, ms | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [
            row["connections"],
            row["limits"],
            str(row.get("loop_ms_each", "")),
            f"{row['opened_per_second']:g}",
            f"{row['loop_share']:.0%}",
            *(f"{row[f'alone_{which}_ms']:g} -> {row[f'beside_{which}_ms']:g}" for which in ("p50", "p99")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
