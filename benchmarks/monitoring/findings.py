"""Findings: seconds from an attacked image to a valid event at each place that it goes to, and what findings cost.

A real server with its journal and a webhook; each image comes from another address and so is another finding. Events
are checked against OCSF (py-ocsf-models) and their chain against itself. Cost is CPU time a request of a server with
findings over that of one without, in pairs: of a natural image nothing is told, of an attacked one always.
"""

from __future__ import annotations

import http.client
import http.server
import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from server.findings.chain import chains, segments, verify

from ..harness import report
from ..harness.closed_loop import lua, ratios, raw_samples, rotated, uploaded, wrk
from ..harness.processes import Server
from ..harness.waiting import eventually

EXAMPLES = """examples:
  python -m benchmarks.monitoring.findings                    # some four minutes
  python -m benchmarks.monitoring.findings --rounds 2 --seconds 0.3 --events 3 --out /tmp/findings
"""
NATURAL, ATTACKED = report.ROOT / "examples/cat.png", report.ROOT / "examples/cat-adversarial.png"
SECRET = "a secret of the benchmark's own, of no use elsewhere"
GOAL_SECONDS = 10.0


class Receiver(http.server.ThreadingHTTPServer):
    """A webhook's receiver: when each finding came."""

    def __init__(self) -> None:
        self.came: dict[str, float] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                now = time.perf_counter()
                for line in body.splitlines():
                    outer.came.setdefault(json.loads(line)["unmapped"]["awnet"]["first_request_id"], now)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


def main() -> int:
    parser = report.parser("monitoring.findings", __doc__, EXAMPLES)
    parser.add_argument("--events", type=int, default=30, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=12, help="pairs for the cost [%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one measurement [%(default)s]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="[1 8]")
    report.add_out(parser, "findings")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    facts = report.loaded_machine()
    with tempfile.TemporaryDirectory() as scratch:
        way, event = delays(Path(scratch), options.events)
        samples = costs(Path(scratch), options.rounds, options.clients, options.seconds)
    found = {
        "what": "seconds from an attacked image to its event, and CPU time with findings over without",
        "machine": facts,
        "seconds": way,
        "goal_seconds": GOAL_SECONDS,
        "ratios": {name: ratios(rows["without"], rows["with"]) for name, rows in samples.items()},
        "samples": {name: raw_samples({k: {0: v} for k, v in rows.items()}) for name, rows in samples.items()},
        "event": event,
    }
    report.conclude(options.out, found, markdown(found))
    return int(max(row["most"] for row in way.values()) >= GOAL_SECONDS)


def delays(scratch: Path, events: int) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Place -> median and largest of the seconds from a request's first byte; and one of the events."""
    (secret := scratch / "secret").write_text(SECRET)
    journal, receiver = scratch / "findings", Receiver()
    settings = {
        "findings_dir": journal,
        "findings_webhook": f"http://127.0.0.1:{receiver.server_port}/",
        "findings_webhook_secret_file": secret,
        "trusted_proxies": "127.0.0.1",
        "drain_seconds": 0,
    }
    seconds: dict[str, list[float]] = {"answer": [], "journal (the SIEM's file)": [], "webhook": []}
    with Server(scratch, **settings) as server:
        server.wait_ready()
        for number in range(events):
            name, begun = f"event-{number}", time.perf_counter()
            headers = {"x-forwarded-for": f"198.51.100.{number}", "x-request-id": name, "content-type": "image/png"}
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", "/predict", ATTACKED.read_bytes(), headers)
            answer = json.loads(connection.getresponse().read())
            seconds["answer"].append(time.perf_counter() - begun)
            connection.close()
            if answer["results"][0]["adversarial"]["verdict"] != "adversarial":
                raise SystemExit(f"{ATTACKED} is not flagged by this model")
            eventually(lambda name=name: name in text_of(journal), 60, "the event is in the journal")
            seconds["journal (the SIEM's file)"].append(time.perf_counter() - begun)
            came = eventually(lambda name=name: receiver.came.get(name), 60, "the event is at the webhook")
            seconds["webhook"].append(came - begun)
    receiver.shutdown()
    event = checked(journal, events)
    return {place: {"median": statistics.median(rows), "most": max(rows)} for place, rows in seconds.items()}, event


def text_of(journal: Path) -> str:
    return "".join(path.read_text("utf-8") for chain in chains(journal) for path in segments(chain))


def checked(journal: Path, events: int) -> dict[str, Any]:
    """The first event, once all of them are OCSF's and chained."""
    from py_ocsf_models.events.findings.detection_finding import DetectionFinding

    (chain,) = chains(journal)
    if problems := verify(chain).problems:
        raise SystemExit("\n".join(problems))
    lines = [json.loads(line) for line in text_of(journal).splitlines()]
    for line in lines:
        DetectionFinding.model_validate(line)
    created = [line for line in lines if line["activity_id"] == 1 and line["metadata"]["event_code"] == "image"]
    if len(created) != events:
        raise SystemExit(f"{len(created)} findings of {events} images")
    return dict(created[0])


def costs(
    scratch: Path, rounds: int, clients: list[int], seconds: float
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Image and clients -> with and without findings -> measurements."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        servers = {
            "without": stack.enter_context(Server(scratch, drain_seconds=0)),
            "with": stack.enter_context(Server(scratch, drain_seconds=0, findings_dir=scratch / "cost")),
        }
        for server in servers.values():
            server.wait_ready()
        for kind, image in (("natural", NATURAL), ("attacked", ATTACKED)):
            (script := scratch / f"{kind}.lua").write_bytes(lua(uploaded(image)))
            for server in servers.values():
                wrk(server.port, 2, 0.5, script)
            for turn in range(rounds):
                for count in clients:
                    rows = found.setdefault(f"{kind}, {count} clients", {name: [] for name in servers})
                    for name in rotated(list(servers), turn):
                        server = servers[name]
                        rows[name].append(wrk(server.port, count, seconds, script, [server.pid]))
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    machine = found["machine"]
    lines = [
        "# Findings: how soon, and what they cost",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} at the start. Made by "
        "`python -m benchmarks.monitoring.findings`. Every event is valid by py-ocsf-models, and the chain as it "
        "was written.",
        "",
        "| from the request's first byte to | median, s | most, s |",
        "|---|---|---|",
        *(f"| {place} | {row['median']:.3f} | {row['most']:.3f} |" for place, row in found["seconds"].items()),
        "",
        f"The goal is {found['goal_seconds']:g} s. Cost, a server with findings over one without: the median of pairs, "
        "and the quartiles.",
        "",
        "| image | CPU time a request | requests a second |",
        "|---|---|---|",
    ]
    for name, row in found["ratios"].items():
        cells = [f"{row[key][1]:.3f} ({row[key][0]:.3f} to {row[key][2]:.3f})" for key in ("cpu_ms", "rps")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, "", "One event:", "", "```json", json.dumps(found["event"], indent=1), "```", ""])


if __name__ == "__main__":
    sys.exit(main())
