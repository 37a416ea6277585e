"""Delivery to real receivers that fail in every way: nothing is lost, nothing is sent to whom it should not be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.server
import logging
import os
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.errors import StartupError
from server.findings import delivery
from server.findings.delivery import Cursor, Deliveries, Delivery, DeliveryError, next_batch
from server.findings.journal import Journal
from server.findings.ocsf import document
from server.findings.webhook import Webhook, read_secret, wrong_url
from tests.server.findings.test_ocsf import finding
from tests.waiting import until

KEEP = (1 << 30, 86_400.0)
SECRET = b"a secret of thirty-two bytes, or so"


class Call:
    """One call of a webhook, as a receiver checks it."""

    def __init__(self, headers: Any, body: bytes) -> None:
        self.id, self.stamp = headers["webhook-id"], headers["webhook-timestamp"]
        signed = f"{self.id}.{self.stamp}.".encode() + body
        right = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        self.genuine = headers["webhook-signature"] == f"v1,{right}" and abs(time.time() - int(self.stamp)) < 60
        self.lines = body.splitlines()


class Receiver:
    """An HTTP server; `answers` are the statuses of its first calls, 204 the one of all others."""

    def __init__(self, answers: Sequence[int | str] = (), certificate: Path | None = None, port: int = 0) -> None:
        self.calls: list[Call] = []
        self.taken: list[bytes] = []
        waiting = list(answers)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                call = Call(self.headers, self.rfile.read(int(self.headers["content-length"])))
                outer.calls.append(call)
                answer = waiting.pop(0) if waiting else 204
                if answer == "hang":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                assert isinstance(answer, int)
                if answer == 204:
                    outer.taken += call.lines
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("location", f"http://127.0.0.1:{outer.port}/elsewhere")
                if answer == 429:
                    self.send_header("retry-after", "0")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def receiving(*answers: int | str, certificate: Path | None = None) -> Iterator[Receiver]:
    receiver = Receiver(answers, certificate)
    try:
        yield receiver
    finally:
        receiver.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses as between calls of a fast world; their order is what is promised."""
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "MAX_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("server.findings.webhook.MAX_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("server.findings.webhook.REFUSED_PAUSE_SECONDS", 0.05)


def journal_of(folder: Path, number: int, **options: Any) -> Journal:
    journal = Journal(folder, *KEEP, **options)
    for _ in range(number):
        journal.append([document(finding())])
    return journal


def written(journal: Journal) -> list[bytes]:
    return [line for path in sorted(journal.folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


@asynccontextmanager
async def delivering(
    journal: Journal, *receivers: Delivery, counted: Callable[..., None] = lambda *counted_as: None
) -> AsyncIterator[Deliveries]:
    made = Deliveries(journal.folder.parent, journal.folder, receivers, counted)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


def webhook(receiver: Receiver, **options: Any) -> Webhook:
    return Webhook(f"http://127.0.0.1:{receiver.port}/in", SECRET, **options)


@pytest.mark.parametrize("answers", [[], [500, 503, 500], [410], [301, 302, 308], ["hang"], [429, 400, 413]])
def test_every_line_arrives_whatever_the_receiver_answered_first(tmp_path: Path, answers: list[int | str]) -> None:
    """Signed each time, in the order of the journal, with the same id when the same lines come again."""
    journal = journal_of(tmp_path, 5)
    counts: list[tuple[str, str, int]] = []

    async def scenario() -> None:
        with receiving(*answers) as receiver:
            async with delivering(journal, webhook(receiver), counted=lambda *one: counts.append(one)) as made:
                await until(lambda: len(receiver.taken) == 5)
                journal.append([document(finding())])
                await until(lambda: len(receiver.taken) == 6)
                await until(lambda: made.waiting() == {"webhook": 0})
            assert receiver.taken == written(journal)
            assert all(call.genuine for call in receiver.calls)
            first = receiver.calls[: len(answers) + 1]
            assert len({call.id for call in first}) == 1 and first[0].id != receiver.calls[-1].id

    asyncio.run(scenario())
    assert sum(number for _, result, number in counts if result == "sent") == 6
    assert sum(result == "failed" for _, result, _ in counts) == len(answers)


def test_the_log_does_not_tell_the_path_of_a_receiver(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be what lets one write there. What fails is told, too, without it."""
    journal = journal_of(tmp_path, 1)
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        with receiving(500) as receiver:
            async with delivering(journal, webhook(receiver)):
                await until(lambda: len(receiver.taken) == 1)

    asyncio.run(scenario())
    assert "webhook" in caplog.text and "/in" not in caplog.text


def test_what_lies_beside_the_journal_is_closed_to_others(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 1)
    before = os.umask(0o022)
    try:

        async def scenario() -> None:
            with receiving() as receiver:
                async with delivering(journal, webhook(receiver)) as made:
                    await until(lambda: made.waiting() == {"webhook": 0})

        asyncio.run(scenario())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in journal.folder.iterdir()}
    assert "cursor-webhook" in modes and set(modes.values()) == {0o640}


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """It could lead the findings to anybody."""

    async def scenario() -> None:
        with receiving(307) as receiver:
            hook = webhook(receiver)
            with pytest.raises(DeliveryError, match="redirects"):
                await hook.send([b"{}"])
            await hook.close()
            assert len(receiver.calls) == 1

    asyncio.run(scenario())


def test_what_another_process_did_not_send_is_sent(tmp_path: Path) -> None:
    """After a kill with fewer workers than before; chains that somebody holds are left to them."""
    journal_of(tmp_path, 3).close()
    first = Journal(tmp_path, *KEEP)  # chain-0 again
    others = journal_of(tmp_path, 4)  # chain-1
    own = Journal(tmp_path, *KEEP)

    async def scenario() -> None:
        with receiving() as receiver:
            async with delivering(own, webhook(receiver)):
                await asyncio.sleep(0.2)
                assert receiver.taken == []
                first.close()
                await until(lambda: len(receiver.taken) == 3)
                others.close()
                await until(lambda: len(receiver.taken) == 7)

    asyncio.run(scenario())
    own.close()


def test_a_receiver_that_is_down_delays_no_other(tmp_path: Path) -> None:
    class Down:
        name = "down"

        async def send(self, lines: Sequence[bytes]) -> None:
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    journal = journal_of(tmp_path, 3)

    async def scenario() -> None:
        with receiving() as receiver:
            async with delivering(journal, Down(), webhook(receiver)) as made:
                await until(lambda: made.waiting() == {"down": 3, "webhook": 0})
            assert receiver.taken == written(journal)

    asyncio.run(scenario())


def test_the_cursor_goes_over_segments_and_torn_lines_and_says_what_is_gone(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 20, segment_bytes=9000)
    segments = sorted(journal.folder.glob("*.jsonl"))
    assert len(segments) > 3
    with segments[1].open("ab") as file:
        file.write(b'{"torn":\n')
    read, cursor = [], Cursor()
    while (batch := next_batch(journal.folder, cursor, max_bytes=3000)).end != cursor:
        read, cursor = read + batch.lines, batch.end
        assert not batch.lost
    assert read == [line for line in written(journal) if line != b'{"torn":'] and cursor.sequence == 20
    segments[0].unlink()
    gone = int(segments[1].stem) - 1
    assert next_batch(journal.folder, Cursor()).lost == gone
    assert next_batch(journal.folder, Cursor(segments[0].name, 10, 1)).lost == gone - 1


def test_what_is_gone_is_counted_once_however_often_the_lines_behind_it_were_tried(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 20, segment_bytes=9000)
    oldest, second = sorted(journal.folder.glob("*.jsonl"))[:2]
    oldest.unlink()
    counts: list[tuple[str, str, int]] = []

    async def scenario() -> None:
        with receiving(503, 503) as receiver:
            deliveries = Deliveries(tmp_path, journal.folder, [webhook(receiver)], lambda *one: counts.append(one))
            deliveries.start()
            await until(lambda: receiver.taken)
            await deliveries.stop()

    asyncio.run(scenario())
    assert [number for _, result, number in counts if result == "lost"] == [int(second.stem) - 1]


def test_a_retry_after_that_is_no_number_is_none(tmp_path: Path) -> None:
    """A superscript two is a digit to Python, and no number."""

    async def scenario() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 no\r\nretry-after: \xb2\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            hook = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", SECRET)
            with pytest.raises(DeliveryError, match="503"):
                await hook.send([b"{}"])
            await hook.close()

    asyncio.run(scenario())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that nobody signed."""
    path = tmp_path / "receiver.pem"
    subject = ["-subj", "/CN=receiver", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    keys = ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run([*made, *subject, *keys], check=True, capture_output=True)
    return path


def test_a_certificate_is_checked(tmp_path: Path, certificate: Path) -> None:
    async def scenario() -> None:
        with receiving(certificate=certificate) as receiver:
            url = f"https://127.0.0.1:{receiver.port}/in"
            strict, known = Webhook(url, SECRET), Webhook(url, SECRET, certificate)
            with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
                await strict.send([b"{}"])
            await known.send([b"{}"])
            elsewhere = Webhook(url.replace("127.0.0.1", "localhost"), SECRET, certificate)
            with pytest.raises(DeliveryError, match=r"(?i)mismatch"):
                await elsewhere.send([b"{}"])
            assert receiver.taken == [b"{}"]
            for hook in (strict, known, elsewhere):
                await hook.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("https://siem.example/in", True),
        ("http://127.0.0.1:9000/", True),
        ("http://localhost/in", True),
        ("http://siem.example/in", False),
        ("ftp://siem.example", False),
        ("https://user:word@siem.example", False),
        ("siem.example", False),
        ("https://[::1", False),
    ],
)
def test_findings_leave_this_machine_encrypted_only(url: str, right: bool) -> None:
    assert (wrong_url(url) is None) == right


def test_secrets_are_text_or_base64_and_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    assert read_secret(path) == SECRET
    path.write_bytes(b"whsec_" + base64.b64encode(SECRET))
    assert read_secret(path) == SECRET
    for wrong in (b"short", b"whsec_" + base64.b64encode(b"short"), b"whsec_!"):
        path.write_bytes(wrong)
        with pytest.raises(StartupError):
            read_secret(path)
    with pytest.raises(StartupError):
        read_secret(tmp_path / "nowhere")
