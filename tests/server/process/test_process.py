"""The server as a process: its command line, its start, its imports and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.processes import free_port
from server.__main__ import read_settings
from server.settings.settings import Settings
from tests.server.tiny import CALL, ROOT, Running, encoded, noise, publish
from tests.waiting import eventually

PNG = encoded(noise())


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=180
    )


@pytest.mark.process
def test_serving_imports_no_training_library() -> None:
    """Neither torch nor onnx nor our own training and export: a server can be installed without them.

    Nor what only some settings need: Triton's client with grpc, what checks signatures, the supervisor of workers. Nor
    what few ask for: the OpenAPI document.
    """
    code = (
        "import sys, server.http.app, server.__main__, server.process.process, server.http.admin\n"
        "import server.engines.onnxruntime\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'torch', 'torchvision', 'onnx', 'onnxscript', 'training', 'export', 'tritonclient',"
        " 'grpc', 'cryptography'}),"
        " sorted(sys.modules.keys() & {'server.workers.supervisor', 'server.workers.metrics_merge',"
        " 'server.http.openapi', 'server.http.openapi_paths'}))"
    )
    done = call("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[] []"), done.stderr


@pytest.mark.process
def test_a_start_does_not_look_for_garbage_in_what_it_imports() -> None:
    """There is none, and it took an eighth of the time; afterwards garbage is collected as ever."""
    code = (
        "import gc, sys, server.__main__ as main\n"
        "early = []\n"
        "def note(phase, about):\n"
        "    process = sys.modules.get('server.process.process')\n"
        "    if process is not None and not hasattr(process, 'serve'):\n"
        "        early.append(about['generation'])\n"
        "gc.callbacks.append(note)\n"
        "status = main.main(['--port', '0', '--admin-port', 'none', '--version', '99'])\n"
        "print(status, early, gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = call("-c", code)
    assert done.stdout.strip() == "1 [] True True", (done.stdout, done.stderr)


@pytest.mark.process
def test_decoding_loads_no_reader_that_is_not_needed(tmp_path: Path) -> None:
    """All of Pillow's formats together cost 10 MB and the first client's time, and are none of ours."""
    for kind in ("PNG", "JPEG", "WEBP"):
        (tmp_path / kind).write_bytes(encoded(noise(), kind))
    code = (
        "import pathlib, sys\n"
        "from server.core.images import Limits, decode\n"
        "files = sorted(pathlib.Path(sys.argv[1]).iterdir())\n"
        "print([decode(file.read_bytes(), 32, Limits()).format for file in files])\n"
        "print(len([name for name in sys.modules if name.startswith('PIL.') and name.endswith('ImagePlugin')]))"
    )
    done = call("-c", code, str(tmp_path))
    # Bmp, Gif and Ppm come with Pillow's own short list; the full one has more than forty.
    assert done.stdout.split("\n")[:2] == ["['JPEG', 'PNG', 'WEBP']", "6"], done.stderr


@pytest.mark.process
def test_help_shows_every_setting_and_examples() -> None:
    """An option that is not in the help does not exist for anybody."""
    done = call("-m", "server", "--help")
    assert done.returncode == 0
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in done.stdout
        assert field.description is not None
    assert "examples:" in done.stdout
    assert "curl" in done.stdout


def test_an_option_overrules_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is nearer than the environment."""
    monkeypatch.setenv("AWNET_PORT", "9000")
    monkeypatch.setenv("AWNET_MAX_BATCH", "3")
    settings = read_settings(["--port", "9001", "--request-log", "--repository", "/models"])
    assert (settings.port, settings.max_batch, settings.request_log) == (9001, 3, True)
    assert settings.repository == Path("/models")
    assert read_settings(["--admin-port", "none", "--grpc-port", "8001"]).admin_port is None
    monkeypatch.setenv("AWNET_ADMIN_PORT", "none")
    assert read_settings([]).admin_port is None
    assert read_settings(["--admin-port", "0"]).admin_port == 0


@pytest.mark.process
def test_a_wrong_setting_stops_the_start_in_one_line() -> None:
    """Its name, its variable and what is wrong; no traceback."""
    done = call("-m", "server", "--port", "seventy")
    assert done.returncode == 2
    assert "AWNET_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_a_missing_model_ends_the_process(tmp_path: Path) -> None:
    """With a failing status and the reason; it does not sit there unready."""
    done = call("-m", "server", "--repository", str(tmp_path), "--port", "0", "--admin-port", "0")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert "awnet cannot be served: there is no version" in line


@pytest.mark.process
def test_a_refused_contract_ends_the_process(tmp_path: Path) -> None:
    """The same for a model that is there and cannot be trusted."""
    publish(tmp_path, change=lambda contract: contract.update(schema_version=99))
    done = call("-m", "server", "--repository", str(tmp_path), "--port", "0", "--admin-port", "0")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert "awnet version 1 cannot be served" in line
    assert "schema_version" in line


@pytest.mark.process
def test_a_default_mode_that_the_model_lacks_ends_the_process(repository: Path) -> None:
    """In one line; answering in another mode is no way out."""
    ports = ("--port", "0", "--admin-port", "0")
    done = call("-m", "server", "--repository", str(repository), *ports, "--mode", "robust")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert "cannot be served: Contract refused: it has no mode 'robust', the default here; there are auto" in line
    wrong = call("-m", "server", *ports, "--mode", "paranoid")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "AWNET_MODE" in wrong.stderr and "'robust'" in wrong.stderr


@pytest.mark.process
def test_an_admin_port_in_use_ends_the_process(repository: Path) -> None:
    """Or an operator would talk to another server; the line says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = call("-m", "server", "--repository", str(repository), "--port", "0", "--admin-port", port)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "another --admin-port, or 'none'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_a_signing_key_that_cannot_be_read_ends_the_process(repository: Path) -> None:
    """It does not go on without checking."""
    options = ("--port", "0", "--admin-port", "none", "--signing-key", "absent.pem")
    done = call("-m", "server", "--repository", str(repository), *options)
    assert done.returncode == 2
    assert "absent.pem" in done.stderr
    assert "Traceback" not in done.stderr


class Load:
    """Clients in threads, until left; `failures` holds every answer that was not 200."""

    def __init__(self, running: Running, clients: int = 4) -> None:
        self.url = f"{running.url}/predict?top_k=1"
        self.failures: list[str] = []
        self.versions: list[str] = []
        self.leaving = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *error: object) -> None:
        self.leaving.set()
        for thread in self.threads:
            thread.join()

    def more(self, count: int = 20) -> None:
        """Wait until so many more requests are answered."""
        wanted = len(self.versions) + count
        eventually(lambda: len(self.versions) >= wanted)

    def ask(self) -> None:
        with httpx.Client(**CALL) as http:
            while not self.leaving.is_set():
                try:
                    answer = http.post(self.url, files={"image": ("a.png", PNG)})
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                    else:
                        self.versions.append(answer.json()["model"]["version"])
                except httpx.TransportError as error:
                    self.failures.append(repr(error))


def refused(running: Running) -> float:
    """How often a version was looked at and refused."""
    name = 'awnet_reloads_total{model="awnet",result="refused"} '
    (line,) = [line for line in running.http.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))


@pytest.mark.process
def test_sighup_takes_a_new_version_under_load(tmp_path: Path) -> None:
    """A good one moves all traffic, a bad one none, and no request fails; the process stays the same and ready."""
    running = Running(publish(tmp_path))
    try:
        running.wait_ready()
        with Load(running) as load:
            publish(tmp_path, "2", seed=1)
            assert "2" not in load.versions
            running.popen.send_signal(signal.SIGHUP)
            eventually(lambda: load.versions[-1] == "2")
            publish(tmp_path, "3", lambda contract: contract.update(labels=["one"]))
            running.popen.send_signal(signal.SIGHUP)
            eventually(lambda: refused(running) == 1)
            load.more()
            assert load.versions[-1] == "2"
            assert running.http.get("/v2/health/ready").status_code == 200
        assert load.failures == []
        assert running.stop() == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_a_repository_that_changes_is_noticed(tmp_path: Path) -> None:
    """Without a signal, and half a copy is looked at and not taken for a version."""
    running = Running(publish(tmp_path / "a"), poll_seconds=0.05)
    try:
        running.wait_ready()
        whole = publish(tmp_path / "b", "2", seed=1) / "awnet/2"
        with Load(running) as load:
            there = tmp_path / "a/awnet/2"
            there.mkdir()
            model = (whole / "model.onnx").read_bytes()
            for part in range(0, len(model), 1 + len(model) // 4):
                before = refused(running)
                with (there / "model.onnx").open("ab") as file:
                    file.write(model[part : part + 1 + len(model) // 4])
                eventually(lambda n=before: refused(running) > n)  # type: ignore[misc]
            assert "2" not in load.versions
            (there / "manifest.json").write_bytes((whole / "manifest.json").read_bytes())
            eventually(lambda: load.versions[-1] == "2")
        assert load.failures == []
    finally:
        running.stop()


@pytest.mark.process
def test_the_admin_port_answers_beside_the_public_one(tmp_path: Path) -> None:
    """A rollback under load: instantly, with no failed request."""
    publish(tmp_path)
    port = free_port()
    running = Running(publish(tmp_path, "2", seed=1), admin_port=port)
    try:
        running.wait_ready()
        with Load(running) as load:
            assert load.versions[-1] == "2"
            answer = httpx.post(f"http://127.0.0.1:{port}/admin/models/awnet/rollback", **CALL)
            assert answer.json()["models"][0]["serving"] == "1"
            switched = len(load.versions)
            load.more()
            # One answer a client may have been on its way, and its thread may be slower than the others to note it.
            assert load.versions[switched:].count("2") <= len(load.threads)
        assert load.failures == []
        assert running.stop() == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_all_ports_are_given_up_together(tmp_path: Path) -> None:
    """HTTP, gRPC and admin: what is in flight is answered, the process ends at the second signal and with 0."""
    ports = [free_port(), free_port()]
    running = Running(publish(tmp_path), grpc_port=ports[0], admin_port=ports[1], drain_seconds=600)
    try:
        running.wait_ready()
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
        with Load(running) as load:
            running.popen.send_signal(signal.SIGTERM)
            eventually(lambda: not running.ready())
            load.more()
        assert load.failures == []
        assert running.stop() == 0
        for port in (running.port, *ports):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
    finally:
        running.popen.kill()


@pytest.mark.process
def test_sigterm_takes_readiness_off_and_answers_what_is_in_flight(repository: Path) -> None:
    """Under steady load not one request fails, and the exit status is 0."""
    running = Running(repository, drain_seconds=600)
    try:
        running.wait_ready()
        failures: list[str] = []
        answered = [0]
        leaving = threading.Event()

        def load() -> None:
            while not leaving.is_set():
                try:
                    # A connection for each request, as from clients that a balancer still sends here.
                    answer = httpx.post(f"{running.url}/predict", files={"image": ("a.png", PNG)}, **CALL)
                    answered[0] += 1
                    if answer.status_code != 200:
                        failures.append(answer.text)
                except httpx.TransportError as error:
                    failures.append(repr(error))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: answered[0] >= 20)
        running.popen.send_signal(signal.SIGTERM)
        eventually(lambda: running.http.get("/v2/health/ready").status_code == 503)
        before = answered[0]
        eventually(lambda: answered[0] > before + 20)
        leaving.set()  # the balancer has noticed
        for thread in threads:
            thread.join()
        assert failures == []
        assert running.stop() == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_the_time_given_to_balancers_ends_by_itself(repository: Path) -> None:
    """Not before it is over, and with 0."""
    running = Running(repository, drain_seconds=1)
    try:
        running.wait_ready()
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun >= 1
    finally:
        running.popen.kill()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.process
def test_a_request_that_is_being_sent_when_the_end_comes_is_answered(repository: Path) -> None:
    """It was begun before the signal and finishes after it."""
    running = Running(repository, drain_seconds=0)
    try:
        running.wait_ready()
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(PNG)}\r\n"
            connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 100")  # it waits for the body
            connection.sendall(PNG[:1000])
            running.popen.send_signal(signal.SIGTERM)
            eventually(lambda: not listens(running.port))
            connection.sendall(PNG[1000:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert running.stop() == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_a_second_signal_does_not_wait(repository: Path) -> None:
    """Whoever presses Ctrl-C again means it."""
    running = Running(repository, drain_seconds=600)
    try:
        running.wait_ready()
        running.popen.send_signal(signal.SIGTERM)
        eventually(lambda: not running.ready())
        assert running.popen.poll() is None
        assert running.stop() == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_sigint_ends_the_server_at_once(repository: Path) -> None:
    """On a developer's keyboard there is no balancer to wait for."""
    running = Running(repository, drain_seconds=600)
    try:
        running.wait_ready()
        assert running.stop(signal.SIGINT) == 0
    finally:
        running.popen.kill()


@pytest.mark.process
def test_an_address_in_use_ends_the_process(repository: Path) -> None:
    """With a failing status and the address in the log."""
    running = Running(repository)
    try:
        running.wait_ready()
        done = call(
            "-m", "server", "--repository", str(repository), "--port", str(running.port), "--admin-port", "none"
        )
        assert done.returncode == 2
        assert "in use" in done.stderr
    finally:
        running.stop()
