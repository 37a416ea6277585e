"""What comes before the first request, over real sockets: PROXY headers and TLS, and what they may cost."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from server.access.addresses import TrustedProxies
from server.errors import StartupError
from server.http.proxy_header import SIGNATURE
from server.ports.tls import Certificates
from tests.server.http.one_port import OnePort, answered, asked, certificate
from tests.waiting import eventually

PROXY = "127.0.0.2"  # trusted; every other address of the loopback is a stranger
PROXIES = TrustedProxies([ip_network(PROXY)])
V1 = b"PROXY TCP4 1.2.3.4 127.0.0.1 4711 80\r\n"
ADDRESSES = socket.inet_aton("1.2.3.4") + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 4711, 80)
V2 = SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(ADDRESSES)) + ADDRESSES
LOCAL = SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def behind() -> Iterator[OnePort]:
    """A port whose proxy sends PROXY headers, with two connections for each client."""
    port = OnePort(proxies=PROXIES, proxy_protocol=True, connections_per_client=2)
    yield port
    port.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(files: tuple[Path, Path]) -> Iterator[OnePort]:
    """A port that speaks TLS, also behind the proxy."""
    port = OnePort(proxies=PROXIES, proxy_protocol=True, certificates=Certificates(*files), connections_per_client=3)
    yield port
    port.close()


def trusting(chain: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(chain))


def over_tls(port: OnePort, context: ssl.SSLContext, source: str = "127.0.0.1", before: bytes = b"") -> ssl.SSLSocket:
    connection = port.connected(source)
    connection.sendall(before)
    return context.wrap_socket(connection, server_hostname="localhost")


def serial(connection: ssl.SSLSocket) -> int:
    return int(str(connection.getpeercert()["serialNumber"]), 16)  # type: ignore[index]


# The PROXY header.


@pytest.mark.parametrize("header", [V1, V2])
def test_the_client_is_whom_a_trusted_proxy_names(behind: OnePort, header: bytes) -> None:
    """Whether the header comes with the request, before it, or byte by byte."""
    with behind.connected(PROXY) as connection:
        connection.sendall(header + GET)
        assert answered(connection) == (200, {"client": ["1.2.3.4", 4711], "scheme": "http"})
    with behind.connected(PROXY) as connection:
        for at in range(len(header)):
            connection.sendall(header[at : at + 1])
            time.sleep(0.001)
        assert asked(connection)[1]["client"] == ["1.2.3.4", 4711]


def test_a_proxys_own_checks_are_its_own(behind: OnePort) -> None:
    """LOCAL names nobody: the client is the proxy."""
    with behind.connected(PROXY) as connection:
        connection.sendall(LOCAL)
        assert asked(connection)[1]["client"][0] == PROXY


def test_a_stranger_needs_no_header_and_may_not_send_one(behind: OnePort) -> None:
    """A health check from beside the proxy is answered; a header that it sends is no HTTP."""
    with behind.connected() as connection:
        assert asked(connection)[1]["client"][0] == "127.0.0.1"
    for header in (V1, V2):
        with behind.connected() as connection:
            connection.sendall(header + GET)
            assert answered(connection)[0] == 400


@pytest.mark.parametrize("begun", [GET, b"PROXY TCP4 rubbish\r\n", SIGNATURE + b"\xff" * 8, b"\x16\x03\x01"])
def test_a_proxy_that_sends_no_header_is_closed(behind: OnePort, begun: bytes) -> None:
    """Whose request it is nobody knows, so nobody answers it."""
    with behind.connected(PROXY) as connection:
        connection.sendall(begun)
        assert answered(connection) == (0, None)


@pytest.mark.parametrize("begun", [b"", V1[:20], V2[:14], V2[:20]])
def test_a_header_that_does_not_come_is_not_waited_for(behind: OnePort, begun: bytes) -> None:
    """Nor one of which a part has come, nor where the proxy goes away in the middle."""
    began = time.monotonic()
    with behind.connected(PROXY) as connection:
        connection.sendall(begun)
        assert answered(connection) == (0, None)
    assert 0.5 < time.monotonic() - began < 20
    with behind.connected(PROXY) as connection:
        connection.sendall(begun)
    eventually(lambda: behind.held() == 0, what="nothing of it is left")


def test_each_client_behind_a_proxy_has_its_own_limit(behind: OnePort) -> None:
    """And the proxy has none: one client's connections leave room for another's."""
    other = V1.replace(b"1.2.3.4", b"5.6.7.8")
    with behind.connected(PROXY) as first, behind.connected(PROXY) as second, behind.connected(PROXY) as third:
        for connection in (first, second, third):
            connection.sendall(V1)
            eventually(lambda: behind.held() >= 1, what="it is counted")
        assert asked(third)[0] == 200
        assert answered(first) == (0, None)  # it waited longest, and makes room
        with behind.connected(PROXY) as fourth:
            fourth.sendall(other)
            assert asked(fourth)[1]["client"][0] == "5.6.7.8"
        assert asked(second)[0] == 200


# TLS.


def test_http_over_tls(secure: OnePort, files: tuple[Path, Path]) -> None:
    """HTTP/1.1 is what is spoken, version 1.3 where the client can, 1.2 where it cannot, and nothing older."""
    context = trusting(files[0])
    context.set_alpn_protocols(["h2", "http/1.1"])
    with over_tls(secure, context) as connection:
        assert (connection.selected_alpn_protocol(), connection.version()) == ("http/1.1", "TLSv1.3")
        assert asked(connection)[1]["scheme"] == "https"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with over_tls(secure, context) as connection:
        assert connection.cipher()[0].startswith("ECDHE-")  # type: ignore[index]
        assert asked(connection)[0] == 200
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        over_tls(secure, context)


def test_a_large_body_and_many_requests_pass_tls(secure: OnePort, files: tuple[Path, Path]) -> None:
    """Flow control and kept connections are as without it."""
    with over_tls(secure, trusting(files[0])) as connection:
        body = os.urandom(3 << 20)
        for _ in range(3):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert asked(connection)[0] == 200


def test_a_refused_upload_over_tls_is_told_why(secure: OnePort, files: tuple[Path, Path]) -> None:
    """The answer arrives, and the end of TLS behind it, although the body is not read."""
    with over_tls(secure, trusting(files[0])) as connection:
        connection.sendall(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        assert answered(connection)[0] == 413


def test_a_proxy_header_stands_before_tls(secure: OnePort, files: tuple[Path, Path]) -> None:
    """As haproxy sends it."""
    with over_tls(secure, trusting(files[0]), PROXY, V2) as connection:
        assert asked(connection)[1] == {"client": ["1.2.3.4", 4711], "scheme": "https"}


def test_plain_http_on_a_port_of_tls_is_told_so(secure: OnePort) -> None:
    """Whoever writes http:// reads what to write instead."""
    with secure.connected() as connection:
        status, document = asked(connection)
        assert status == 400 and "https://" in document["detail"]


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_a_handshake_that_does_not_end_is_closed(secure: OnePort, begun: bytes) -> None:
    """At the deadline of a header."""
    began = time.monotonic()
    with secure.connected() as connection:
        connection.sendall(begun)
        assert answered(connection) == (0, None)
    assert 0.5 < time.monotonic() - began < 20
    eventually(lambda: secure.held() == 0, what="nothing of it is left")


def test_unfinished_handshakes_are_connections_of_their_client(secure: OnePort, files: tuple[Path, Path]) -> None:
    """The fourth closes the first; they keep nobody else out, and whoever finishes is counted once."""
    silent = [secure.connected("127.0.0.3") for _ in range(4)]
    eventually(lambda: secure.held() == 3, what="three are left")
    assert silent[0].recv(1) == b""
    with over_tls(secure, trusting(files[0])) as connection:
        assert asked(connection)[0] == 200
    for one in silent:
        one.close()
    eventually(lambda: secure.held() == 0, what="nothing of them is left")
    kept = [over_tls(secure, trusting(files[0])) for _ in range(3)]
    eventually(lambda: secure.held() == 3, what="each is counted once")
    for one in kept:
        one.close()
    eventually(lambda: secure.held() == 0, what="nothing of them is left")


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x00\x05hello", b"\x16" + b"\xff" * 100, b"\x80\x2e\x01\x00\x02"])
def test_rubbish_instead_of_a_handshake_is_closed(
    secure: OnePort, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a line in the log for each."""
    with secure.connected() as connection:
        connection.sendall(rubbish)
        connection.shutdown(socket.SHUT_WR)
        answered_with = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"HTTP/1.1 200" not in answered_with
    eventually(lambda: secure.held() == 0, what="nothing of it is left")
    assert caplog.text == ""


def test_a_client_may_not_renegotiate(secure: OnePort, files: tuple[Path, Path]) -> None:
    """Each would cost the server another key exchange on one connection."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.port}", "-tls1_2"]
    done = subprocess.run(command, input=b"R\n" * 3, capture_output=True, timeout=60)
    assert b"RENEGOTIATING" in done.stderr + done.stdout
    assert b"no renegotiation" in done.stderr


def test_only_clients_with_a_certificate_of_the_authority_are_let_in(tmp_path: Path) -> None:
    """Where one is demanded; the others get no further than the handshake."""
    chain, key = certificate(tmp_path)
    known, unknown = certificate(tmp_path, "known"), certificate(tmp_path, "unknown")
    port = OnePort(certificates=Certificates(chain, key, known[0]))
    try:
        context = trusting(chain)
        context.load_cert_chain(*known)
        with over_tls(port, context) as connection:
            assert asked(connection)[0] == 200
        for given in (None, unknown):
            context = trusting(chain)
            if given:
                context.load_cert_chain(*given)
            with pytest.raises((ssl.SSLError, ConnectionResetError)), over_tls(port, context) as connection:
                connection.sendall(GET)
                if not connection.recv(100):
                    raise ConnectionResetError
    finally:
        port.close()


# The certificate's files.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def renewed(tmp_path: Path) -> tuple[Certificates, Clock, Path, Path]:
    """A certificate that is in use, its clock and its files."""
    clock = Clock()
    chain, key = certificate(tmp_path)
    return Certificates(chain, key, clock=clock), clock, chain, key


def replace(chain: Path, key: Path, folder: Path, **options: object) -> None:
    """Both files, each atomically, as an ACME client does."""
    folder.mkdir(exist_ok=True)
    new_chain, new_key = certificate(folder, "new", **options)  # type: ignore[arg-type]
    new_key.replace(key)
    new_chain.replace(chain)


def test_a_new_certificate_is_used_without_a_restart(
    tmp_path: Path, renewed: tuple[Certificates, Clock, Path, Path]
) -> None:
    """By the next connection, and those that are open go on."""
    certificates, clock, chain, key = renewed
    port = OnePort(certificates=certificates)
    try:
        with over_tls(port, trusting(chain)) as old:
            before = serial(old)
            replace(chain, key, tmp_path / "new")
            clock.now += 1
            with over_tls(port, trusting(chain)) as new:
                assert serial(new) != before
                assert asked(new)[0] == 200
            assert asked(old)[0] == 200
    finally:
        port.close()


@pytest.mark.parametrize("spoilt", ["rubbish", "mismatch", "encrypted", "missing", "folder", "fifo", "large"])
def test_a_bad_new_certificate_keeps_the_old_one(
    tmp_path: Path, renewed: tuple[Certificates, Clock, Path, Path], spoilt: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, not at each look; the next good one is used."""
    certificates, clock, chain, key = renewed
    first = certificates.current
    if spoilt == "rubbish":
        chain.write_bytes(b"rubbish")
    elif spoilt == "mismatch":
        (tmp_path / "other").mkdir()
        shutil.copy(certificate(tmp_path / "other")[1], key)
    elif spoilt == "encrypted":
        replace(chain, key, tmp_path / "new", password=b"secret")
    elif spoilt == "large":
        chain.write_bytes(chain.read_bytes() + b"\n" * (2 << 20))
    else:
        key.unlink()
        if spoilt == "folder":
            key.mkdir()
        elif spoilt == "fifo":
            os.mkfifo(key)
    for _ in range(3):
        clock.now += 1
        assert certificates.current is first
    assert len(caplog.records) == 1 and "stays" in caplog.text
    if key.is_dir():
        key.rmdir()
    replace(chain, key, tmp_path / "good")
    clock.now += 1
    assert certificates.current is not first


@pytest.mark.parametrize(("days", "said"), [(-1, "expired"), (3, "expires"), (90, None)])
def test_a_certificate_near_its_end_is_warned_of(
    tmp_path: Path, days: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, and when it is replaced; it is used all the same, since clients judge it."""
    certificates = Certificates(*certificate(tmp_path, days=days))
    assert abs(certificates.current.not_after - time.time() - days * 86_400) < 60
    assert (said or "") in caplog.text and bool(caplog.text) == bool(said)


def test_a_server_does_not_start_with_a_certificate_that_does_not_load(tmp_path: Path) -> None:
    """And says which file is at fault, in one line."""
    chain, key = certificate(tmp_path)
    other, locked = certificate(tmp_path, "other"), certificate(tmp_path, "locked", password=b"secret")
    binary, odd = tmp_path / "binary", tmp_path / "odd.pem"
    binary.write_bytes(b"\xff\xfe" * 100)
    odd.write_bytes(chain.read_bytes().replace(b"CERTIFICATE", b"X509 CERTIFICATE"))
    for pair, said in [
        ((binary, key), "no certificate"),
        ((chain, key, binary), "no certificate"),
        ((odd, key), "does not begin with a certificate"),
        ((chain, other[1]), "MISMATCH"),
        ((chain, tmp_path / "nowhere"), "cannot be read"),
        (locked, "encrypted"),
        ((key, key), "no certificate"),
        ((chain, key, key), "no certificate"),
    ]:
        with pytest.raises(StartupError, match=said) as raised:
            Certificates(*pair)
        assert "\n" not in raised.value.detail
