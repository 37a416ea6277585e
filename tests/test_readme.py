"""The README is true: a test runs its commands, but for `make test`, and judges the answers that it prints."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
SETUP_SECONDS = 600  # `make serve` may have to install the server's environment first
ADDRESS = "127.0.0.1:8000"
# `make test` hands its own flags down, and the make that a test calls must not take them for its own.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def load_readme_reader():
    spec = importlib.util.spec_from_file_location("awnet_readme", ROOT / ".ci/readme.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


readme = load_readme_reader()
TEXT = (ROOT / "README.md").read_text("utf-8")
COMMANDS = readme.commands(TEXT)
PROGRAMS = readme.programs(TEXT)


@pytest.fixture(scope="module")
def server(process, tmp_path_factory):
    """`make serve` on a free port, so that a server that already runs on the README's stays out of it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as out:
        command = ["make", "serve", f"ARGS=--port {port}"]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
            return answers(f"http://127.0.0.1:{port}/v2/health/ready")

        eventually(ready, SETUP_SECONDS)
        yield f"127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def test_the_readme_shows_the_two_commands_and_a_question_with_its_answer():
    """The three lines that a newcomer types stand there, and the answer that they get."""
    texts = [c.text for c in COMMANDS]
    assert "make serve" in texts and "make test" in texts
    asked = [c for c in COMMANDS if c.text.startswith("curl ") and "/predict" in c.text]
    assert asked and all(c.answer for c in asked)


def test_the_readme_shows_an_image_called_clean_and_its_twin_called_adversarial():
    """Both halves of the promise stand there: the right class, and the alarm."""
    answers = {re.search(r"examples/([\w-]+)\.png", c.text)[1]: c.answer["results"][0] for c in COMMANDS if c.answer}
    clean, twin = answers["ship"], answers["ship-adversarial"]
    assert (clean["predictions"][0]["label"], clean["adversarial"]["verdict"]) == ("ship", "clean")
    assert twin["adversarial"]["verdict"] == "adversarial"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.text.startswith("curl ")], ids=lambda c: c.text)
def test_a_curl_line_of_the_readme_gets_the_answer_printed_below_it(command, server, tmp_path):
    """Typed literally, but for the port, against `make serve`."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = command.text.replace(ADDRESS, server)
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if command.answer is not None:
        assert list(readme.differences(command.answer, json.loads(done.stdout))) == []


def test_the_readme_shows_a_client_of_four_lines():
    """Whoever would rather write Python than curl need not look further."""
    [(program, printed)] = PROGRAMS
    assert len(list(filter(None, program.splitlines()))) == 4
    assert printed.strip() and ADDRESS in program


@pytest.mark.parametrize(("program", "printed"), PROGRAMS, ids=lambda text: text.splitlines()[0][:30])
def test_a_python_program_of_the_readme_prints_what_stands_below_it(program, printed, server):
    """Run as written, but for the port, from the root of the repository, with what `make serve` has installed."""
    command = [ROOT / ".venv-server/bin/python", "-c", program.replace(ADDRESS, server)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (printed, "")


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if not c.text.startswith(("curl ", "make serve", "make test"))],
    ids=lambda c: c.text,
)
def test_every_other_command_of_the_readme_succeeds(command):
    """Run as written, from the root of the repository, with this environment's python first."""
    environment = {**ENVIRONMENT, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    line = ["bash", "-euo", "pipefail", "-c", command.text]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("actual", "complaint"),
    [
        ({"label": "ship", "score": 0.11, "timing_ms": {"total": 50}, "id": "abc1"}, None),
        ({"label": "cat", "score": 0.11, "timing_ms": {"total": 50}, "id": "abc1"}, "answer.label"),
        ({"label": "ship", "score": 0.9, "timing_ms": {"total": 50}, "id": "abc1"}, "answer.score"),
        ({"label": "ship", "score": True, "timing_ms": {"total": 50}, "id": "abc1"}, "answer.score"),
        ({"label": "ship", "score": 0.11, "timing_ms": {"total": "x"}, "id": "abc1"}, "answer.timing_ms.total"),
        ({"label": "ship", "score": 0.11, "timing_ms": {"total": 50}, "id": "xyz"}, "answer.id"),
        ({"label": "ship", "score": 0.11, "timing_ms": {"total": 50}}, "answer: keys"),
    ],
)
def test_a_wrong_answer_is_told_from_the_readmes(actual, complaint):
    """The judge of the README forgives times and the last digits, and nothing else."""
    promised = {"label": "ship", "score": 0.1, "timing_ms": {"total": 1.0}, "id": "abc..."}
    found = list(readme.differences(promised, actual))
    assert found == [] if complaint is None else found and found[0].startswith(complaint)


@pytest.mark.process
def test_help_lists_every_target_that_a_person_calls():
    """`make help` is complete: each phony target has its line."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    assert [t for t in phony if f"  make {t} " not in shown] == []
