"""Findings in a service and in real servers: what is reported of whom, what it costs nobody, and what a kill leaves."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo
from py_ocsf_models.events.findings.detection_finding import DetectionFinding

from server.core.engine import Signals
from server.errors import StartupError
from server.findings.chain import chains, segments, verify
from server.findings.quarantine import FOLDER
from server.findings.reading import Event, events
from server.http.admin import create_admin
from server.http.app import create_app
from server.monitoring.golden_probe import GoldenProbes
from server.service.service import Service
from server.settings.settings import Settings
from tests.server.findings.test_delivery import SECRET, Receiver, receiving
from tests.server.guard.test_guard import variants
from tests.server.keys import key, table, write
from tests.server.small import GatedEngine, service_over
from tests.server.test_query_guard import Clients, png
from tests.server.tiny import CALL, Running, encoded, noise, plain
from tests.waiting import PATIENCE_SECONDS, eventually, until

CLEAN, SUSPICIOUS, ADVERSARIAL = (encoded(plain(red)) for red in (0.2, 0.6, 0.9))
WRITTEN_SECONDS = 1.0  # what docs/findings.md states: by then a finding is in the journal


def written(folder: Path) -> list[Event]:
    return [event for chain in chains(folder) for event in events(chain)]


class Reported:
    """A service with findings, its clients, and what the journal has."""

    def __init__(self, service: Service, engine: GatedEngine, folder: Path) -> None:
        self.service, self.engine, self.folder = service, engine, folder
        self.clients = Clients(create_app(service))

    async def first(self, kind: str = "image") -> Event:
        """The first event of a kind, once it is there."""

        def there() -> list[Event]:
            return [event for event in written(self.folder) if event["metadata"]["event_code"] == kind]

        await until(lambda: bool(there()), PATIENCE_SECONDS)
        return there()[0]


@asynccontextmanager
async def reporting(repository: Path, folder: Path, **settings: Any) -> AsyncIterator[Reported]:
    engine = GatedEngine(repository)
    service = service_over(engine, findings_dir=folder, golden_probe_seconds=0, **settings)
    await service.start()
    try:
        yield Reported(service, engine, folder)
    finally:
        await service.stop()


def test_nothing_is_written_where_no_folder_is_named(
    repository: Path, begun: Callable[[], set[threading.Thread]]
) -> None:
    service = service_over(GatedEngine(repository))
    assert service._reporting is None
    assert "findings" not in {thread.name for thread in begun()}


def test_an_attacked_image_is_an_event_that_names_image_model_and_client(repository: Path, tmp_path: Path) -> None:
    """By hashes: neither address nor image is in it. Before the service ends, and closed when it does."""

    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            answer = await reported.clients.predict(CLEAN, ADVERSARIAL, SUSPICIOUS, address="192.0.2.7")
            event = await reported.first()
            name = reported.service.monitor.clients.name("192.0.2.7")
        about, document = event["unmapped"]["awnet"], answer.json()
        assert event["activity_name"] == "Create" and event["count"] == 1
        assert (about["client"], about["key"]) == (name, None)
        assert about["first_request_id"] == document["request_id"]
        assert about["image"]["sha256"] == hashlib.sha256(ADVERSARIAL).hexdigest()
        assert about["image"]["score"] == pytest.approx(document["results"][1]["adversarial"]["score"], rel=1e-5)
        assert (about["image"]["threshold"], about["image"]["decision"]) == (0.77, "answered")
        assert set(about["image"]["omega_drift"]) == {"blocks.0", "blocks.1"}
        (resource,) = event["resources"]
        assert (resource["name"], resource["uid"]) == ("awnet", document["model"]["sha256"])
        assert [one["activity_name"] for one in written(tmp_path)] == ["Create", "Close"]
        assert "192.0.2.7" not in json.dumps(written(tmp_path))

    asyncio.run(scenario())


def test_suspicious_images_are_findings_where_that_is_asked_for(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path, findings_at="suspicious") as reported:
            await reported.clients.predict(CLEAN)
            await reported.clients.predict(SUSPICIOUS)
            event = await reported.first()
            assert event["unmapped"]["awnet"]["image"]["verdict"] == "suspicious"
        assert len(written(tmp_path)) == 2

    asyncio.run(scenario())


def test_the_hash_is_that_of_the_right_image_where_others_cannot_be_decoded(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            answer = await reported.clients.predict(b"no image", CLEAN, ADVERSARIAL)
            assert answer.status_code == 200
            event = await reported.first()
        assert event["unmapped"]["awnet"]["image"]["sha256"] == hashlib.sha256(ADVERSARIAL).hexdigest()

    asyncio.run(scenario())


def test_a_tensor_is_known_by_the_hash_of_its_bytes(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        pixels = np.full((3, 32, 32), 230, np.uint8)
        tensor = {"name": "image", "shape": [1, 3, 32, 32], "datatype": "UINT8", "data": pixels.ravel().tolist()}
        async with reporting(repository, tmp_path, query_guard="observe") as reported:
            answer = await reported.clients.post("/v2/models/awnet/infer", json={"inputs": [tensor]})
            assert answer.status_code == 200, answer.text
            event = await reported.first()
        assert event["unmapped"]["awnet"]["image"]["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()

    asyncio.run(scenario())


def test_a_caller_with_a_key_is_named_by_it(repository: Path, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", table("shop", ["predict"]))

    async def scenario() -> None:
        async with reporting(repository, tmp_path / "findings", api_keys=keys) as reported:
            headers = {"authorization": f"Bearer {key('shop')}"}
            await reported.clients.post("/predict", content=ADVERSARIAL, headers=headers)
            about = (await reported.first())["unmapped"]["awnet"]
        assert (about["key"], about["client"]) == ("shop", None)

    asyncio.run(scenario())


def test_a_client_that_repeats_itself_is_a_finding_of_the_query_guard(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path, query_guard="observe", query_guard_images=8) as reported:
            for pixels in variants(0, 9):
                await reported.clients.predict(png(pixels))
            event = await reported.first("query-guard")
        assert event["finding_info"]["attacks"][1]["sub_technique"]["uid"] == "AML.T0043.001"
        assert event["unmapped"]["awnet"]["client"]

    asyncio.run(scenario())


def test_a_lasting_rate_of_flagged_images_is_a_finding_of_its_own(repository: Path, tmp_path: Path) -> None:
    """The CUSUM of one process, as /metrics has it."""

    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            for _ in range(10):
                await reported.clients.predict(*4 * [ADVERSARIAL])
            event = await reported.first("rate")
        assert event["severity"] == "High" and "more images are flagged" in event["message"]

    asyncio.run(scenario())


def test_a_detector_that_misses_a_golden_image_is_a_finding(repository: Path, tmp_path: Path) -> None:
    def spoil(signals: Signals) -> None:
        signals.logits[:] = signals.logits[:, ::-1]
        signals.p_type[:] = 1 - signals.p_type

    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            service = reported.service
            assert service._reporting is not None
            reported.engine.spoil = spoil
            probes = GoldenProbes(service.monitor, service._open, missed=service._reporting.missed)
            await probes.once()
            event = await reported.first("detector")
        assert event["finding_info"]["attacks"] == []
        assert event["resources"][0]["name"] == "awnet"

    asyncio.run(scenario())


def test_events_are_counted_from_0_on(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            count = reported.service.metrics.registry.get_sample_value
            one = {"kind": "image", "activity": "create"}
            assert count("awnet_findings_total", one) == 0 == count("awnet_findings_lost_total")
            await reported.clients.predict(ADVERSARIAL)
            await until(lambda: count("awnet_findings_total", one) == 1, PATIENCE_SECONDS)
            assert count("awnet_findings_total", {"kind": "detector", "activity": "close"}) == 0

    asyncio.run(scenario())


class Flood:
    """Attacked images from ever new addresses; when each request was answered."""

    ADDRESSES = 240  # below the most findings that are open at a time

    def __init__(self, url: str) -> None:
        self.answered: dict[str, float] = {}
        self._number = iter(range(self.ADDRESSES))
        self._lock, self._rest = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str) -> None:
        with httpx.Client(base_url=url, **CALL) as client:
            while True:
                with self._lock:
                    number = next(self._number, None)
                if number is None:
                    return
                headers = {"x-forwarded-for": f"198.51.100.{number}", "x-request-id": f"flood-{number}"}
                try:
                    answer = client.post("/predict", content=ADVERSARIAL, headers=headers)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                self.answered[f"flood-{number}"] = time.monotonic()
                self._rest.wait(0.02)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_what_was_answered_a_second_before_a_kill_is_in_the_journal(
    process: None, repository: Path, tmp_path: Path
) -> None:
    """`kill -9` in the middle of a flood; the next process goes on with the chain and closes what was open."""
    settings = {"findings_dir": tmp_path, "trusted_proxies": "127.0.0.1"}
    running = Running(repository, **settings)
    try:
        running.wait_ready()
        flood = Flood(running.url)
        eventually(lambda: len(flood.answered) >= 60, PATIENCE_SECONDS, "the flood is under way")
        time.sleep(WRITTEN_SECONDS)
        killed = time.monotonic()
        running.send(signal.SIGKILL)
        running.popen.wait()
        flood.join()
        due = {name for name, at in flood.answered.items() if at < killed - WRITTEN_SECONDS}
        assert len(due) >= 60 and len(flood.answered) < Flood.ADDRESSES
        there = {event["unmapped"]["awnet"]["first_request_id"] for event in written(tmp_path)}
        assert due <= there
        assert verify(chains(tmp_path)[0]).problems == []
        begun = {event["finding_info"]["uid"] for event in written(tmp_path)}  # that of the rate among them
        running.start()
        running.wait_ready()
        eventually(lambda: len(written(tmp_path)) >= 2 * len(begun), PATIENCE_SECONDS, "they are closed")
    finally:
        running.stop()
    (chain,) = chains(tmp_path)
    assert verify(chain).problems == []
    closed = [event for event in written(tmp_path) if event["activity_name"] == "Close"]
    assert {event["finding_info"]["uid"] for event in closed} == begun
    assert all("its process has ended" in event["message"] for event in closed)


@pytest.mark.slow
def test_each_worker_has_a_chain_of_its_own(process: None, repository: Path, tmp_path: Path) -> None:
    running = Running(repository, findings_dir=tmp_path, workers=2)
    try:
        running.wait_ready()
        eventually(lambda: len(chains(tmp_path)) == 2, PATIENCE_SECONDS, "both workers have their chain")

        def asked() -> bool:
            for _ in range(10):  # each over a connection of its own: the workers share them
                httpx.post(f"{running.url}/predict", content=ADVERSARIAL, **CALL).raise_for_status()
            return all(verify(chain).lines for chain in chains(tmp_path))

        eventually(asked, PATIENCE_SECONDS, "both have written")
    finally:
        running.stop()
    assert [verify(chain).problems for chain in chains(tmp_path)] == [[], []]


def test_a_folder_that_cannot_be_written_ends_the_start_in_one_line(
    process: None, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(encoded(noise()))
    running = Running(repository, findings_dir=tmp_path / "file")
    assert running.popen.wait(PATIENCE_SECONDS) == 2
    assert "findings cannot be written to" in running.text()
    assert "Traceback" not in running.text()


@pytest.mark.slow
def test_a_kill_loses_nothing_on_its_way_to_a_webhook(process: None, repository: Path, tmp_path: Path) -> None:
    """The receiver is down during the flood and the kill; later it gets every line, and none is another."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    with receiving() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/in"
    settings = {"findings_dir": tmp_path / "findings", "trusted_proxies": "127.0.0.1", "findings_webhook": url}
    running = Running(repository, findings_webhook_secret_file=secret, **settings)
    try:
        running.wait_ready()
        flood = Flood(running.url)
        eventually(lambda: len(flood.answered) >= 40, PATIENCE_SECONDS, "the flood is under way")
        running.send(signal.SIGKILL)
        running.popen.wait()
        flood.join()
        receiver = Receiver(port=receiver.port)
        running.start()
        running.wait_ready()
        eventually(lambda: len(receiver.taken) >= 80, PATIENCE_SECONDS, "everything has come")
    finally:
        running.stop()
    receiver.close()
    assert all(call.genuine for call in receiver.calls)
    (chain,) = chains(tmp_path / "findings")
    assert receiver.taken == [line for path in segments(chain) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        {"findings_webhook": "https://siem.example"},
        {"findings_dir": "f", "findings_webhook": "https://siem.example"},
        {"findings_dir": "f", "findings_webhook_secret_file": "s"},
        {"findings_syslog": "udp://siem.example"},
    ],
)
def test_settings_that_belong_together_are_asked_for_together(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"need findings_dir|belong together"):
        Settings(**settings)


@pytest.mark.parametrize(
    ("setting", "value"), [("findings_webhook", "http://siem.example"), ("findings_syslog", "siem.example")]
)
def test_an_address_that_nothing_is_sent_to_ends_the_start(
    repository: Path, tmp_path: Path, setting: str, value: str
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    given = {"findings_dir": tmp_path / "f", setting: value}
    if setting == "findings_webhook":
        given["findings_webhook_secret_file"] = tmp_path / "secret"
    with pytest.raises(StartupError, match=setting):
        service_over(GatedEngine(repository), **given)


def test_the_admin_port_lists_and_marks_findings(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            await reported.clients.predict(ADVERSARIAL)
            event = await reported.first()
            admin = httpx.ASGITransport(create_admin(reported.service))
            async with httpx.AsyncClient(transport=admin, base_url="http://localhost") as client:
                (found,) = (await client.get("/admin/findings")).json()["findings"]
                assert (found["id"], found["mark"]) == (event["finding_info"]["uid"], None)
                path = f"/admin/findings/{found['id']}"
                answer = await client.post(path, json={"mark": "false_alarm", "comment": "our own test"})
                assert answer.json()["mark"] == "false_alarm"

                async def marked() -> bool:
                    return (await client.get("/admin/findings")).json()["findings"][0]["mark"] == "false_alarm"

                await until(marked, PATIENCE_SECONDS)
                held = zipfile.ZipFile(io.BytesIO((await client.get(f"{path}/evidence")).content))
                (points,) = json.loads(held.read("thresholds.json")).values()
                assert points["adversarial"] == {"score": 0.77, "fpr": 0.01}
                assert hashlib.sha256(ADVERSARIAL).hexdigest() in held.read("replay.txt").decode()
                assert (await client.get("/admin/findings/none/evidence")).status_code == 404
                assert (await client.post("/admin/findings/none", json={"mark": "confirmed"})).status_code == 404
                for wrong in (
                    {"mark": "fine"},
                    {"mark": {}},
                    {"comment": "x"},
                    {"mark": "confirmed", "comment": "x" * 2000},
                ):
                    assert (await client.post(path, json=wrong)).status_code == 422
                assert (await client.get("/admin/findings?most=0")).status_code == 422
        mark = next(one for one in written(tmp_path) if "mark" in one["unmapped"]["awnet"])
        assert (mark["activity_name"], mark["status"], mark["comment"]) == ("Update", "Suppressed", "our own test")
        assert mark["evidences"][0]["verdict_id"] == 1
        DetectionFinding.model_validate(mark)

    asyncio.run(scenario())


def test_the_admin_port_says_where_findings_are_off(repository: Path) -> None:
    async def scenario() -> None:
        service = service_over(GatedEngine(repository))
        await service.start()
        admin = httpx.ASGITransport(create_admin(service))
        async with httpx.AsyncClient(transport=admin, base_url="http://localhost") as client:
            answer = await client.get("/admin/findings")
        assert answer.status_code == 404 and answer.json()["type"].endswith("unknown-finding")
        await service.stop()

    asyncio.run(scenario())


@asynccontextmanager
async def admin_of(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_admin(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def images_of(folder: Path) -> list[Path]:
    return [path for path in (folder / FOLDER).glob("*") if len(path.name) == 64]


def numbered(number: int) -> PngInfo:
    made = PngInfo()
    made.add_text("number", str(number))
    return made


IMAGES = {"findings_images_bytes": 1 << 20}


def test_no_image_is_kept_where_that_is_not_asked_for(
    repository: Path, tmp_path: Path, begun: Callable[[], set[threading.Thread]]
) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path) as reported:
            await reported.clients.predict(ADVERSARIAL)
            await reported.first()
            count = reported.service.metrics.registry.get_sample_value
            assert count("awnet_findings_images_total", {"result": "kept"}) is None

    asyncio.run(scenario())
    assert not (tmp_path / FOLDER).exists()
    assert "quarantine" not in {thread.name for thread in begun()}


def test_the_flagged_image_is_kept_and_its_neighbours_are_not(repository: Path, tmp_path: Path) -> None:
    """By its hash: the name that its sender gave it is nowhere."""

    async def scenario() -> None:
        async with reporting(repository, tmp_path, **IMAGES) as reported:
            count = reported.service.metrics.registry.get_sample_value
            assert count("awnet_findings_images_total", {"result": "lost"}) == 0
            files = [("image", ("holiday.png", data)) for data in (CLEAN, ADVERSARIAL, SUSPICIOUS)]
            assert (await reported.clients.post("/predict", files=files)).status_code == 200
            kept = {"result": "kept"}
            await until(lambda: count("awnet_findings_images_total", kept) == 1, PATIENCE_SECONDS)

    asyncio.run(scenario())
    (path,) = images_of(tmp_path)
    assert path.read_bytes() == ADVERSARIAL and path.name == hashlib.sha256(ADVERSARIAL).hexdigest()


def test_what_was_flagged_just_before_the_end_is_kept(repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(repository, tmp_path, **IMAGES) as reported:
            await reported.clients.predict(ADVERSARIAL)

    asyncio.run(scenario())
    assert len(images_of(tmp_path)) == 1


def test_the_admin_port_gives_an_image_to_the_holder_of_a_key_alone(repository: Path, tmp_path: Path) -> None:
    """Without keys, whoever reaches the port would have it; the rest of the evidence is there all the same."""
    keys = write(tmp_path / "keys.toml", table("boss", ["admin"]), table("shop", ["predict"]))

    async def scenario(folder: Path, **settings: Any) -> list[str]:
        async with reporting(repository, folder, **IMAGES, **settings) as reported:
            headers = {"authorization": f"Bearer {key('shop')}"}
            await reported.clients.post("/predict", content=ADVERSARIAL, headers=headers)
            path = f"/admin/findings/{(await reported.first())['finding_info']['uid']}/evidence"
            await until(lambda: bool(images_of(folder)), PATIENCE_SECONDS)
            async with admin_of(reported.service) as admin:
                if settings:
                    assert (await admin.get(path)).status_code == 401
                    assert (await admin.get(path, headers=headers)).status_code == 403
                answer = await admin.get(path, headers={"authorization": f"Bearer {key('boss')}"})
        held = zipfile.ZipFile(io.BytesIO(answer.content))
        if "image.png" in held.namelist():
            assert held.read("image.png") == ADVERSARIAL
            assert "predict image.png" in held.read("replay.txt").decode()
        return held.namelist()

    assert "image.png" in asyncio.run(scenario(tmp_path / "a", api_keys=keys))
    assert "image.png" not in asyncio.run(scenario(tmp_path / "b"))


@pytest.mark.slow
def test_kept_images_outlive_a_kill_and_go_when_their_time_is_over(
    process: None, repository: Path, tmp_path: Path
) -> None:
    """A real server, killed in a flood of different images; two workers share the folder afterwards."""
    settings = {"findings_dir": tmp_path, "trusted_proxies": "127.0.0.1", "findings_images_bytes": 200 * 4096}
    sent = [encoded(plain(0.9), pnginfo=numbered(number)) for number in range(40)]
    assert len(set(sent)) == 40
    running = Running(repository, **settings)

    def send(numbers: range) -> None:
        for number in numbers:
            headers = {"x-forwarded-for": f"198.51.100.{number}"}
            httpx.post(f"{running.url}/predict", content=sent[number], headers=headers, **CALL).raise_for_status()

    def whole() -> bool:
        return all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in images_of(tmp_path))

    try:
        running.wait_ready()
        send(range(20))
        time.sleep(WRITTEN_SECONDS)
        running.send(signal.SIGKILL)
        running.popen.wait()
        assert {path.name for path in images_of(tmp_path)} == {hashlib.sha256(one).hexdigest() for one in sent[:20]}
        assert whole()
        for path in images_of(tmp_path)[:10]:
            os.utime(path, (0, time.time() - 8 * 86_400))
    finally:
        running.stop()
    running = Running(repository, **settings, workers=2)
    try:
        running.wait_ready()
        eventually(lambda: len(images_of(tmp_path)) == 10, PATIENCE_SECONDS, "what was too old has gone")
        send(range(20, 40))
        eventually(lambda: len(images_of(tmp_path)) == 30, PATIENCE_SECONDS, "both workers keep theirs")
        assert whole()
    finally:
        running.stop()


def test_images_need_a_folder() -> None:
    with pytest.raises(ValueError, match="findings_images_bytes needs findings_dir"):
        Settings(findings_images_bytes=1)
