"""Ports, addresses and clients as they are in the world: what is taken, both families, descriptors, curl and Java."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.processes import Process, free_port
from server.errors import StartupError
from server.ports.listening import bind
from tests.server.tiny import CALL, ROOT, Running, encoded, noise, publish
from tests.waiting import eventually

PNG = encoded(noise())
JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.Path;

public class Post {
    public static void main(String[] given) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(given[0])).header("Content-Type", "image/png")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(given[1]))).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
"""


@pytest.mark.process
@pytest.mark.parametrize("which", ["port", "admin_port", "grpc_port"])
def test_a_port_in_use_is_said_before_a_model_is_looked_at(which: str, tmp_path: Path) -> None:
    """The model is missing, too; whoever starts a second server by mistake learns the mistake, and at once."""
    ports = {"port": "0", "admin_port": "none", "grpc_port": "none"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[which] = str(taken.getsockname()[1])
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
        environment |= {f"AWNET_{name.upper()}": value for name, value in ports.items()}
        command = [sys.executable, "-m", "server", "--repository", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert f"127.0.0.1:{ports[which]} cannot be had" in line


@pytest.mark.parametrize(
    ("option", "another"),
    [("--port", "--host"), ("--admin-port", "--admin-host"), ("--metrics-port", "--metrics-host")],
)
def test_an_address_that_is_not_this_machines_is_not_blamed_on_its_port(option: str, another: str) -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    with pytest.raises(StartupError, match=rf"192\.0\.2\.1:0 cannot be had .*: name another {another}$"):
        bind("192.0.2.1", 0, option)


@pytest.mark.process
@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_all_addresses_are_the_same_for_http_and_grpc(tmp_path: Path) -> None:
    """`--host ::` listens on IPv6 and IPv4, on both ports."""
    grpc_port = free_port()
    with Running(publish(tmp_path), host="::", grpc_port=grpc_port) as running:
        running.wait_ready()
        for address in ("127.0.0.1", "::1"):
            for port in (running.port, grpc_port):
                socket.create_connection((address, port), timeout=60).close()


@pytest.mark.process
def test_head_is_answered_wherever_get_is(tmp_path: Path) -> None:
    """With the same status and no body, on both ports."""
    admin = free_port()
    with Running(publish(tmp_path), admin_port=admin) as running:
        running.wait_ready()
        public = ["/", "/page/page.css", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/model", "/docs"]
        public += ["/openapi.json", "/v2/models/awnet", "/v2/models/awnet/ready", "/v2/models/awnet/config"]
        addresses = [f"{running.url}{path}" for path in public]
        addresses += [f"http://127.0.0.1:{admin}/admin/{path}" for path in ("models", "detection")]
        for address in addresses:
            head, get = (httpx.request(method, address, **CALL) for method in ("HEAD", "GET"))
            assert (head.status_code, head.content) == (get.status_code, b""), address
            assert head.status_code == 200


@pytest.mark.process
def test_running_out_of_descriptors_is_said_once_and_passes(tmp_path: Path) -> None:
    """Connections wait in the kernel meanwhile, and those that are there are answered."""
    repository, port, log = publish(tmp_path / "models"), free_port(), tmp_path / "log"
    command = (
        f"ulimit -n 100; exec {sys.executable} -m server --repository {repository} --port {port} --admin-port none"
    )
    with Process(["bash", "-c", f"{command} --drain-seconds 0 --poll-seconds 0"], log) as server:
        url = f"http://127.0.0.1:{port}"
        server.answering(f"{url}/v2/health/ready", 180)
        with httpx.Client(base_url=url, **CALL) as http:
            assert http.get("/v2/health/live").status_code == 200
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
            eventually(lambda: "no connection can be taken" in server.text())
            assert http.get("/v2/health/live").status_code == 200
        for connection in crowd:
            connection.close()
        eventually(lambda: "connections are taken again" in server.text())
        assert httpx.get(f"{url}/v2/health/live", **CALL).status_code == 200
        assert server.text().count("no connection can be taken") <= 3


@pytest.mark.process
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (apt-get install curl)")
def test_curl_asks_for_http_2_and_gets_its_answer(tmp_path: Path) -> None:
    """`--http2` sends `Upgrade: h2c` with the form."""
    (image := tmp_path / "a.png").write_bytes(PNG)
    with Running(publish(tmp_path / "models")) as running:
        running.wait_ready()
        command = ["curl", "-s", "--http2", "-o", os.devnull, "-w", "%{http_code} %{http_version}"]
        command += ["-F", f"image=@{image}", f"{running.url}/predict"]
        assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "200 1.1"


@pytest.mark.process
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed (apt-get install default-jdk)")
def test_javas_http_client_is_answered(tmp_path: Path) -> None:
    """It sends `Upgrade: h2c` with every request unless told otherwise."""
    (image := tmp_path / "a.png").write_bytes(PNG)
    (program := tmp_path / "Post.java").write_text(JAVA)
    with Running(publish(tmp_path / "models")) as running:
        running.wait_ready()
        command = ["java", str(program), f"{running.url}/predict", str(image)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.stdout.strip() == "200", done.stderr


@pytest.mark.process
def test_several_workers_bound_their_connections_together(tmp_path: Path) -> None:
    """Each has its part of the numbers, and ignores an upgrade like one process."""
    with Running(publish(tmp_path), workers=2, max_connections=8, header_seconds=60) as running:
        running.wait_ready()
        crowd = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(60)]

        def open_ones() -> int:
            count = 0
            for connection in crowd:
                connection.settimeout(0.01)
                try:
                    count += connection.recv(1) != b""
                except TimeoutError:
                    count += 1
                except ConnectionResetError:
                    pass
            return count

        eventually(lambda: open_ones() <= 8)
        upgrade = {"connection": "Upgrade", "upgrade": "h2c", "content-type": "image/png"}
        assert running.http.post("/predict", content=PNG, headers=upgrade).status_code == 200
        for connection in crowd:
            connection.close()
