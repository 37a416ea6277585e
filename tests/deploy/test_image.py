"""The Dockerfile: what can be read in it, what hadolint says and, where that is asked for, that it builds and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domain import __version__
from server.ports.tls import Certificates
from tests.requires import SEARCH, requires
from tests.server.http.one_port import OnePort, certificate

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")


@requires("hadolint")
def test_hadolint_finds_nothing() -> None:
    """No rule is switched off."""
    hadolint = str(shutil.which("hadolint", path=SEARCH))
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in TEXT


def test_it_runs_as_a_user_without_rights_and_stops_on_sigterm() -> None:
    """By number, so that a policy can see that it is not root; exec form, so that signals arrive."""
    final = TEXT.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", final, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "server"\]$', final, re.MULTILINE)
    assert re.search(r"^RUN ", final, re.MULTILINE) is None


def test_only_the_servers_locked_dependencies_go_in() -> None:
    """With hashes, and nothing of training or export is copied."""
    assert "--require-hashes" in TEXT and "--no-deps" in TEXT
    copied = " ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)).split()
    assert sorted(copied) == [
        "LICENSE",
        "awnet",
        "domain",
        "examples/*.png",
        "examples/twins.json",
        "model_repository/awnet",
        "requirements/server-cpu.txt",
        "requirements/server.txt",
        "server",
    ]
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(copied)


def test_its_label_has_the_version_of_the_package() -> None:
    """Where nobody says another one."""
    assert re.search(r"^ARG VERSION=(.+)$", TEXT, re.MULTILINE)[1] == __version__  # type: ignore[index]


@pytest.mark.process
def test_the_health_check_needs_no_program_but_python() -> None:
    """It says 0 to a server that is alive and not 0 to one that answers otherwise, hangs or is not there."""
    import http.server
    import json
    import threading

    check = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", TEXT, re.DOTALL)[1])  # type: ignore[index]
    assert check[0] == "python"

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    asked: list[str] = []

    def healthy(port: int) -> bool:
        run = [sys.executable, *check[1:]]
        return subprocess.run(run, env={"AWNET_PORT": str(port)}, stderr=subprocess.DEVNULL, timeout=60).returncode == 0

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert healthy(server.server_port)
        Handler.status = 503
        assert not healthy(server.server_port)
        server.shutdown()
        port = server.server_port
    assert not healthy(port)
    assert asked == ["/v2/health/live"] * 2


@pytest.mark.process
def test_the_health_check_speaks_tls_where_the_server_does(tmp_path: Path) -> None:
    """It asks its own server over the loopback, so it looks at no name."""
    import json

    check = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", TEXT, re.DOTALL)[1])  # type: ignore[index]
    chain, key = certificate(tmp_path)
    port = OnePort(certificates=Certificates(chain, key))
    environment = {"AWNET_PORT": str(port.port), "AWNET_TLS_CERTIFICATE": str(chain)}
    try:
        assert subprocess.run([sys.executable, *check[1:]], env=environment, timeout=60).returncode == 0
    finally:
        port.close()


@requires("buildah")
@pytest.mark.skipif(
    "buildah" not in os.environ.get("AWNET_REQUIRE", "").replace(",", " ").split(),
    reason="builds an image, which takes minutes, 1.5 GB and root: ask for it with AWNET_REQUIRE=buildah",
)
def test_it_builds_without_an_engine_runs_read_only_and_answers_an_upload(tmp_path: Path) -> None:
    """The scripts of deploy/image, as docs/deploy.md gives them."""
    for script in ("build.sh", "try.sh"):
        done = subprocess.run([ROOT / "deploy/image" / script, tmp_path], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("upload answered: cat, clean") == 2
    assert "== read-only root" in done.stdout and done.stdout.rstrip().endswith("== done")
