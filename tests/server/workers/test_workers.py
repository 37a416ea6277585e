"""Several workers behind one port: whole figures, a worker that is killed, an operator's calls, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from tritonclient.grpc import InferenceServerClient

from benchmarks.harness.processes import free_port
from server.core.cpu_limits import share_of
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.errors import StartupError, UnknownModel
from server.monitoring.golden_probe import GoldenProbes
from server.workers.member import _together
from tests.server.process.test_process import Load, call
from tests.server.schema_3 import publish_modes
from tests.server.small import service_over
from tests.server.tiny import CALL, Running, encoded, noise, plain, publish
from tests.waiting import eventually, until

PNG = encoded(noise())
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Crew(Running):
    """Two workers and what is asked of them from outside; every question comes over a connection of its own."""

    def __init__(self, repository: Path, **settings: object) -> None:
        self.grpc, port = 0, free_port()
        self.repository = repository
        self.admin = f"http://127.0.0.1:{port}/admin"
        super().__init__(repository, workers=2, admin_port=port, threads=1, golden_probe_seconds=0, **settings)

    def wait_complete(self) -> None:
        self.wait_ready()
        eventually(lambda: self.value("awnet_workers_up") == 2)

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.admin}/models", **CALL).json())

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def agrees(self) -> bool:
        return [worker["agrees"] for worker in self.status()["workers"]] == [True, True]

    def predict(self, image: bytes = PNG) -> str:
        headers = {"content-type": "image/png"}
        answer = httpx.post(f"{self.url}/predict", content=image, headers=headers, **CALL)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model"]["version"])

    def series(self) -> Series:
        text = httpx.get(f"{self.url}/metrics", **CALL).text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in plain_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return total(self.series(), name, **labels)


def total(series: Series, name: str, **labels: str) -> float:
    return sum(value for (found, of), value in series.items() if found == name and labels.items() <= dict(of).items())


@pytest.fixture(scope="module")
def crew(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """One service for the tests below, each of which leaves it whole."""
    port = free_port()
    repository = publish(tmp_path_factory.mktemp("crew") / "models")
    running = Crew(repository, grpc_port=port, drain_seconds=600)
    running.grpc = port
    try:
        running.wait_complete()
        yield running
    finally:
        running.stop(signal.SIGINT)


def test_any_worker_tells_the_figures_of_all(crew: Crew) -> None:
    """Each scrape may meet another worker; the sums are exact, and there is one series for what each worker has."""
    before = crew.series()
    for _ in range(30):
        crew.predict()
    for _ in range(6):
        now = crew.series()
        for name, labels in (
            ("awnet_requests_total", {"route": "/predict", "code": "200"}),
            ("awnet_request_seconds_count", {"route": "/predict"}),
            ("awnet_request_seconds_bucket", {"route": "/predict", "le": "+Inf"}),
            ("awnet_verdicts_total", {}),
            ("awnet_watched_images_total", {}),
            ("awnet_score_count", {}),
        ):
            assert total(now, name, **labels) - total(before, name, **labels) == 30, name
        assert total(now, "awnet_queue_capacity_images") == 256
        assert total(now, "awnet_model_info") == total(now, "awnet_engine_up") == total(now, "awnet_build_info") == 1
        assert total(now, "awnet_workers") == total(now, "awnet_workers_up") == 2
        assert len(now) <= 500


def test_exemplars_outlive_the_way_through_the_supervisor(crew: Crew) -> None:
    """prometheus_client's own mode for several processes has none."""
    for _ in range(40):
        crew.predict()
    text = httpx.get(f"{crew.url}/metrics", headers={"accept": "application/openmetrics-text"}, **CALL).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [sample.exemplar for sample in families["awnet_request_seconds"].samples if sample.exemplar]


def open_connections(port: int) -> int:
    """TCP connections of a server on 127.0.0.1:`port` that it has not closed yet."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established, close_wait = "01", "08"
    return sum(row[1].endswith(f":{port:04X}") and row[3] in (established, close_wait) for row in rows)


def test_connections_are_shared_out(crew: Crew) -> None:
    """A client's connection stays where it is: the worker that wakes first must not take them all."""
    pids = crew.pids()

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    crew.http.close()
    eventually(lambda: open_connections(crew.port) == 0)  # of tests before; a worker closes its end a moment later
    before = descriptors()
    held = [socket.create_connection(("127.0.0.1", crew.port)) for _ in range(8)]
    try:
        eventually(lambda: sum(descriptors()) - sum(before) == 8)
        more = [now - then for now, then in zip(descriptors(), before, strict=True)]
        assert min(more) >= 2, more
    finally:
        for connection in held:
            connection.close()
    crew.http = httpx.Client(base_url=crew.url, **CALL)


def test_clients_and_the_cusum_are_those_of_the_whole_service(crew: Crew) -> None:
    """One client is one, whichever workers it met; the alarm is raised once, on the images of all."""
    attacked = encoded(plain(0.9))
    for _ in range(30):
        crew.predict(attacked)
    now = crew.series()
    assert total(now, "awnet_cusum_raised", verdict="adversarial") == 1
    assert total(now, "awnet_cusum_alarms_total", verdict="adversarial") == 1
    assert (total(now, "awnet_flagged_clients"), total(now, "awnet_flagged_largest_client_ratio")) == (1, 1)
    report = httpx.get(f"{crew.admin}/detection?address=127.0.0.1", **CALL).json()
    assert [(c["client"], c["flagged"]) for c in report["clients"]] == [(report["client"], report["flagged_images"])]
    (watched,) = report["models"]
    assert watched["cusum"]["adversarial"]["raised"] is True
    assert watched["calibrated_images"] == total(now, "awnet_watched_images_total", calibrated="true")


def test_the_page_shows_recent_verdicts_of_all(crew: Crew) -> None:
    """Within a second or two, whichever worker is asked; nobody's are counted twice."""

    def shown() -> int:
        document = httpx.get(f"{crew.url}/page/recent.json", **CALL).json()
        return sum(map(sum, document["counts"]))

    given = crew.value("awnet_verdicts_total")
    eventually(lambda: all(shown() == given for _ in range(6)))


def test_a_worker_that_is_killed_takes_its_gauges_and_leaves_its_counts(crew: Crew) -> None:
    """Under load: only what it had in flight fails, no counter ever goes back, and the worker is replaced."""
    clients = 4
    predicted = {"route": "/predict", "code": "200"}
    scrapes: list[Series] = [crew.series()]
    pids, restarts = crew.pids(), crew.value("awnet_worker_restarts_total")
    before = total(scrapes[0], "awnet_requests_total", **predicted)
    with Load(crew, clients) as load:
        eventually(lambda: crew.value("awnet_requests_total", **predicted) > before)
        os.kill(pids[0], signal.SIGKILL)

        def back() -> bool:
            scrapes.append(crew.series())
            return total(scrapes[-1], "awnet_worker_restarts_total") > restarts and crew.pids()[0] != pids[0]

        eventually(lambda: back() and total(scrapes[-1], "awnet_workers_up") == 2)
        load.more()
    assert len(load.failures) <= clients, load.failures
    scrapes.append(crew.series())
    assert scrapes[-1]["awnet_queue_images", ()] == 0
    assert total(scrapes[-1], "awnet_queue_capacity_images") == 256
    alone = [s for s in scrapes if total(s, "awnet_workers_up") == 1]
    assert alone
    assert all(total(s, "awnet_queue_capacity_images") == 128 for s in alone)
    assert all(total(s, "awnet_engine_up") == 1 for s in scrapes)
    for one, next_one in pairwise(scrapes):
        for key, value in one.items():
            if key[0].endswith(("_total", "_bucket", "_count")):
                assert next_one[key] >= value, key
    counted = total(scrapes[-1], "awnet_requests_total", **predicted) - before
    assert 0 < counted <= len(load.versions) + len(load.failures)
    assert set(scrapes[-1]) - set(scrapes[0]) <= {
        key for key in scrapes[-1] if key[0].startswith(("awnet_request", "awnet_rejections"))
    }


@pytest.mark.process
def test_grpc_is_served_by_every_worker(crew: Crew, tmp_path: Path) -> None:
    """The port is asked for alone first: nobody else's calls are shared, and nobody shares ours."""
    address = f"127.0.0.1:{crew.grpc}"
    client = InferenceServerClient(address)
    assert client.is_server_ready()
    client.close()
    done = call(
        *("-m", "server", "--repository", str(tmp_path), "--port", "0", "--admin-port", "none"),
        *("--workers", "2", "--grpc-port", str(crew.grpc)),
    )
    assert done.returncode == 2
    assert address in done.stderr


def test_an_operators_call_reaches_all_and_a_replacement_serves_as_the_others_do(crew: Crew) -> None:
    """Whatever its settings say: a rolled back version must not return through a worker that was killed."""
    publish(crew.repository, "2", seed=1)
    report = httpx.post(f"{crew.admin}/reload", **CALL).json()
    assert [change["result"] for change in report["changes"]] == ["loaded"]
    assert {crew.predict() for _ in range(8)} == {"2"}
    httpx.post(f"{crew.admin}/models/awnet/rollback", **CALL)
    assert {crew.predict() for _ in range(8)} == {"1"}
    refused = httpx.post(f"{crew.admin}/models/awnet/rollback", **CALL)
    assert (refused.status_code, refused.json()["type"]) == (404, "urn:awnet:problem:unknown-model")

    # Its first successors find no model, and the others serve on meanwhile.
    pids, restarts = crew.pids(), crew.value("awnet_worker_restarts_total")
    away = crew.repository.rename(crew.repository.with_name("away"))
    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: crew.value("awnet_worker_restarts_total") >= restarts + 2)
    assert crew.predict() == "1"
    away.rename(crew.repository)
    eventually(lambda: len(crew.pids()) == 2 and crew.pids()[1] != pids[1])
    assert {crew.predict() for _ in range(8)} == {"1"}
    (model,) = crew.status()["models"]
    assert (model["serving"], model["not_taken_up_to"], crew.agrees()) == ("1", "2", True)

    publish(crew.repository, "3", seed=2)
    crew.popen.send_signal(signal.SIGHUP)
    eventually(lambda: crew.status()["models"][0]["serving"] == "3" and crew.agrees())
    assert {crew.predict() for _ in range(8)} == {"3"}


def fresh_ready(crew: Crew) -> bool:
    """What the worker says that takes a new connection."""
    return httpx.get(f"{crew.url}/v2/health/ready", **CALL).status_code == 200


def test_sigterm_drains_all_workers(crew: Crew) -> None:
    """Nothing in flight fails, every process is gone afterwards, and the exit status is 0. The crew ends here."""
    pids = crew.pids()
    with Load(crew) as load:
        crew.popen.send_signal(signal.SIGTERM)
        eventually(lambda: not any(fresh_ready(crew) for _ in range(8)))
        load.more()
    assert load.failures == []
    assert crew.stop() == 0  # a second signal: no balancer is waited for any longer
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", crew.port))


@pytest.mark.process
def test_workers_do_not_outlive_their_supervisor(repository: Path) -> None:
    """Nobody would replace them, and they would hold the port."""
    crew = Crew(repository)
    crew.wait_ready()
    pids = crew.pids()
    crew.popen.kill()
    crew.popen.wait()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.process
def test_every_worker_has_the_default_mode(tmp_path: Path) -> None:
    """And counts images by mode for all."""
    running = Crew(publish_modes(tmp_path, "1"), mode="robust")
    try:
        running.wait_complete()
        headers = {"content-type": "image/png"}
        for query, mode in [("", "robust"), ("?mode=auto", "auto")] * 6:  # each over a connection of its own
            answer = httpx.post(f"{running.url}/predict{query}", content=PNG, headers=headers, **CALL)
            assert answer.json()["mode"] == mode
        assert {
            mode: running.value("awnet_mode_images_total", mode=mode) for mode in ("auto", "robust", "natural")
        } == {
            "auto": 6,
            "robust": 6,
            "natural": 0,
        }
    finally:
        running.stop()


@pytest.mark.process
def test_a_service_that_cannot_start_ends_with_the_reason(tmp_path: Path) -> None:
    """Once, not once for each worker."""
    done = call("-m", "server", "--repository", str(tmp_path), "--port", "0", "--admin-port", "0", "--workers", "2")
    assert done.returncode == 1
    reason, end = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert "awnet cannot be served: there is no version" in reason
    assert "worker 0" in end
    assert "Traceback" not in done.stderr


def answer(worker: int, serving: str = "1", leases: int = 0) -> dict[str, Any]:
    version = {"version": serving, "role": "serving", "sha256": "00", "leases": leases}
    models = [{"name": "awnet", "serving": serving, "versions": [version]}]
    return {"worker": worker, "pid": 100 + worker, "result": {"models": models, "canary": None, "closing": 0}}


def test_the_status_tells_which_worker_differs() -> None:
    """What most of them serve stands in front; leases are those of all."""
    document = _together([answer(0, leases=2), answer(1, "2"), answer(2, leases=3)])
    assert document["models"][0]["serving"] == "1"
    assert document["models"][0]["versions"][0]["leases"] == 5
    assert [worker["agrees"] for worker in document["workers"]] == [True, False, True]
    assert document["workers"][1]["says"]["models"][0]["serving"] == "2"


def test_a_call_that_fails_in_some_workers_says_where() -> None:
    """In all of them it is the error that one process would give."""
    failed = {"worker": 1, "pid": 101, "problem": ["unknown-model", "there is no model 'x'"]}
    with pytest.raises(StartupError, match=r"1 of 2 workers.*worker 1: there is no model"):
        _together([answer(0), failed])
    with pytest.raises(UnknownModel, match="there is no model"):
        _together([failed, failed])


def test_cores_are_shared_out() -> None:
    """All of them where there are enough, one for each worker where there are not."""
    assert [share_of(7, 3, number) for number in range(3)] == [3, 2, 2]
    assert [share_of(2, 4, number) for number in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_golden_images_are_sent_as_often_as_the_setting_says(repository: Path, seconds: float) -> None:
    """0 sends none; the interval is a metric, so that an alert on missing ones knows whether any are due."""

    async def scenario() -> None:
        engine = EmbeddedEngine(Repository(repository), threads=1)
        service = service_over(engine, golden_probe_seconds=seconds)
        await service.start()
        try:
            probing = {task.get_coro().__qualname__ for task in asyncio.all_tasks()} & {GoldenProbes.run.__qualname__}
            assert bool(probing) == bool(seconds)
            (watch,) = service.monitor
            if seconds:
                await until(lambda: sum(n for (_, result), n in watch.golden_probes.items() if result == "right") >= 3)
            assert (
                f"awnet_golden_probe_interval_seconds {seconds}" in generate_latest(service.metrics.registry).decode()
            )
        finally:
            await service.stop()

    asyncio.run(scenario())
