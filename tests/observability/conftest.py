"""One live stack for all tests that look at it: servers under a mixed load, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.harness.processes import free_port
from benchmarks.harness.prometheus import Prometheus, substitute
from deploy.grafana.panels import ANNOTATIONS, queries
from tests.server.engines.triton.fake_triton import FakeTriton
from tests.server.tiny import Running, encoded, noise, plain, publish
from tests.waiting import eventually

TRITON_METRICS = Path(__file__).with_name("triton.prom")  # as a real Triton 2.51 exposes them


class TritonMetrics:
    """A Triton's metrics port: the recorded text, its counters growing as under load."""

    def __init__(self) -> None:
        begun = time.monotonic()
        lines = TRITON_METRICS.read_text("utf-8").splitlines()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                factor = 1 + round(time.monotonic() - begun)
                multiplied = []
                for line in lines:
                    name, _, value = line.rpartition(" ")
                    multiplied.append(line if line.startswith("#") else f"{name} {int(value) * factor}")
                body = ("\n".join(multiplied) + "\n").encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class FakeTritonThread:
    """The fake Triton on an event loop of its own, for a server in another process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._triton = self._run(self._start())
        self.url = self._triton.url

    async def _start(self) -> FakeTriton:
        return await FakeTriton().start()

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        self._run(self._triton.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Load:
    """Clients who send clean images, attacked ones and nonsense, a few each second, until told to stop."""

    def __init__(self, *servers: Running) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(server,)) for server in servers]
        for thread in self._threads:
            thread.start()

    def _send(self, server: Running) -> None:
        images = [encoded(plain(red)) for red in (0.1, 0.2, 0.3, 0.5, 0.9)] + [encoded(noise(64, 48), "JPEG")]
        turn = 0
        while not self._over.is_set():
            turn += 1
            post = server.http.post
            post("/predict", content=images[turn % len(images)], headers={"content-type": "image/png"})
            if turn % 5 == 0:
                post("/predict", content=b"not an image", headers={"content-type": "image/png"})
                post("/predict", files={"image": ("a.png", b"")})
                server.http.get("/nowhere")
                server.http.get("/v2/models/awnet")
            self._over.wait(0.05)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Stack:
    """`server` has the embedded engine, a canary release and a shadow; `behind` has a Triton."""

    def __init__(self, server: Running, behind: Running, prometheus: Prometheus, repository: Path, admin: int) -> None:
        self.server = server
        self.behind = behind
        self.prometheus = prometheus
        self._repository, self._admin = repository, admin

    def reload(self) -> None:
        """Publish a new version and have `server` take it; back when Prometheus has seen that."""
        publish(self._repository, "4", seed=3)
        answer = self.server.http.post(f"http://127.0.0.1:{self._admin}/admin/reload", timeout=60)
        assert answer.status_code == 200, answer.text
        name, expression, _, _ = ANNOTATIONS[0]
        assert name == "Reloads"
        eventually(lambda: self.prometheus.query(substitute(expression, "10s", "30s")))


def empty_panels(prometheus: Prometheus) -> list[str]:
    """Queries of the dashboard that have no value now."""
    empty = []
    for row, title, query in queries():
        found = prometheus.query(substitute(query.expr, "10s", "30s"))
        if not found or all(sample["value"][1] == "NaN" for sample in found):
            empty.append(f"{row} | {title} | {query.expr}")
    return empty


@contextmanager
def live(folder: Path) -> Iterator[Stack]:
    """Up, and scraped until every query of the dashboard has something to be computed from."""
    repository = folder / "repository"
    for seed, version in enumerate(("1", "2", "3")):
        publish(repository, version, seed=seed)
    with ExitStack() as open_things:

        def keep(thing):  # type: ignore[no-untyped-def]
            open_things.callback(thing.stop)
            return thing

        admin = free_port()
        triton, metrics = keep(FakeTritonThread()), keep(TritonMetrics())
        often = {"golden_probe_seconds": 0.5}
        server = keep(Running(repository, versions_kept=3, canary="2:0.3", shadow="1", admin_port=admin, **often))
        behind = keep(Running(repository, engine="triton", triton_urls=triton.url, **often))
        server.wait_ready()
        behind.wait_ready()
        addresses = [running.url.removeprefix("http://") for running in (server, behind)]
        prometheus = keep(Prometheus(folder / "prometheus", {"awnet": addresses, "triton": [metrics.address]}))
        keep(Load(server, behind))
        with suppress(AssertionError):  # the test of the panels names those that stay empty
            eventually(lambda: not empty_panels(prometheus))
        yield Stack(server, behind, prometheus, repository, admin)
