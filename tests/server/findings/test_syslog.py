"""Findings to syslog, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from pathlib import Path

import pytest

from server.findings.ocsf import document
from server.findings.syslog import Address, Syslog, message
from tests.server.findings.test_delivery import certificate, delivering, journal_of, quick, written
from tests.server.findings.test_ocsf import finding
from tests.waiting import until

__all__ = ["certificate", "quick"]


def test_a_syslog_message_is_of_rfc_5424() -> None:
    line = json.dumps(document(finding())).encode()
    head, _, text = message(line).partition(b" OCSF - ")
    assert text == line
    priority, stamp, host, program, process = head.split(b" ")
    assert priority == b"<108>1"  # 13 * 8 + warning
    assert stamp == b"2027-01-15T08:00:00.123Z" and host and program == b"awnet" and process.isdigit()


async def _counted_octets(reader: asyncio.StreamReader) -> bytes:
    """The next message of a TCP stream, as RFC 6587 frames it."""
    length = int(await reader.readuntil(b" "))
    return await reader.readexactly(length)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_syslog_goes_over_tcp_and_tls_and_connects_again(tmp_path: Path, certificate: Path, scheme: str) -> None:
    journal = journal_of(tmp_path / "findings", 4)
    context = None
    if scheme == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    async def scenario() -> None:
        got: list[bytes] = []
        connections = 0

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                for _ in range(4):
                    got.append((await _counted_octets(reader)).partition(b" OCSF - ")[2])
            await asyncio.sleep(0.1)  # what it has taken is not sent again for a close that comes later
            writer.close()

        server = await asyncio.start_server(receive, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with delivering(journal, Syslog(Address(scheme, "127.0.0.1", port), certificate)):
            await until(lambda: len(got) == 4)
            await asyncio.sleep(0.3)  # until the end of that connection has come
            journal.append([document(finding())])
            await until(lambda: len(got) == 5)
        assert got == written(journal) and connections == 2
        server.close()

    asyncio.run(scenario())


def test_syslog_goes_over_udp(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 3)

    async def scenario() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(5)
            async with delivering(journal, Syslog(Address("udp", "127.0.0.1", receiver.getsockname()[1]))) as made:
                await until(lambda: made.waiting() == {"syslog": 0})
            got = [receiver.recv(65536).partition(b" OCSF - ")[2] for _ in range(3)]
        assert got == written(journal)

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["siem", "http://siem", "tcp://", "tcp://siem:0", "tls://siem:70000", "udp://a b"])
def test_an_address_that_is_no_syslog_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Address.parse(text)


def test_syslog_has_its_usual_ports() -> None:
    assert Address.parse("tls://siem.example") == ("tls", "siem.example", 6514)
    assert Address.parse("udp://[::1]:10514") == ("udp", "::1", 10514)
