"""deploy/haproxy.cfg: accepted by the real haproxy, and its times fit the front end's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from server.settings import Settings
from tests.requires import requires

CONFIG = Path(__file__).resolve().parents[2] / "deploy/haproxy.cfg"
TEXT = CONFIG.read_text("utf-8")


def seconds(text: str) -> float:
    """'250ms' or '15s' in seconds."""
    amount, unit = re.fullmatch(r"(\d+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return int(amount) / (1000 if unit == "ms" else 1)


def timeout(name: str) -> float:
    return seconds(re.search(rf"^    timeout {name}\s+(\w+)$", TEXT, re.MULTILINE)[1])  # type: ignore[index]


def server_option(name: str) -> str:
    line = re.search(r"^    default-server (.*)$", TEXT, re.MULTILINE)[1]  # type: ignore[index]
    return re.search(rf"\b{name} (\w+)", line)[1]  # type: ignore[index]


@requires("haproxy")
def test_haproxy_accepts_the_file_without_a_warning() -> None:
    """With addresses, since names of containers are known nowhere else."""
    addresses = {
        "AWNET_FRONT_1": "127.0.0.1:8001",
        "AWNET_FRONT_2": "127.0.0.1:8002",
        "PATH": "/usr/sbin:/usr/bin:/bin",
    }
    done = subprocess.run(["haproxy", "-c", "-f", CONFIG], env=addresses, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


def test_a_draining_front_end_is_left_alone_before_it_leaves() -> None:
    """Its drain time is at least twice what haproxy needs to see that readiness is off."""
    notices = seconds(server_option("inter")) + (int(server_option("fall")) - 1) * seconds(server_option("fastinter"))
    assert Settings().drain_seconds >= 2 * notices


def test_marking_a_front_end_down_cuts_nothing_off() -> None:
    """What a draining front end still has in flight is answered."""
    settings = "\n".join(line.partition("#")[0] for line in TEXT.splitlines())
    assert "on-marked-down" not in settings


def test_only_requests_that_got_no_answer_are_repeated() -> None:
    """Repeating a 503 would multiply an overload."""
    retried = re.search(r"^    retry-on (.*)$", TEXT, re.MULTILINE)[1].split()  # type: ignore[index]
    assert sorted(retried) == ["conn-failure", "empty-response"]


def test_the_front_end_gives_up_first_and_haproxy_closes_first() -> None:
    """So that the client reads the front end's reason, and no request meets a connection that is being closed."""
    assert timeout("server") > Settings().timeout_seconds
    assert timeout("http-keep-alive") < Settings().keep_alive_seconds
