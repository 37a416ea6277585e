"""What the environment and the command line may hold beside good values."""

from __future__ import annotations

import os

import pytest

from server.__main__ import main, read_settings
from server.renames import option, variable
from server.settings import Settings

NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("AWNET_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1", "", "1e300", "0x10", "one"])
def test_what_is_no_usable_number_is_refused_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or a server that was told to wait `inf` seconds would end with a traceback; `nan` is no deadline at all."""
    monkeypatch.setattr("server.process.serve", lambda settings: 0)  # so that a value that passes is seen at once
    monkeypatch.setattr("server.workers.supervisor.supervise", lambda settings, command: 0)
    assert main([f"{option(name)}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"setting {name} ({variable(name)}): ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("AWNET_MAX_BACH", "warning: AWNET_MAX_BACH is no setting: AWNET_MAX_BATCH is meant?"),
        ("AWNET_WORKER", "warning: AWNET_WORKER is no setting: AWNET_WORKERS is meant?"),
        ("AWNET_SHUTDOWN_SECOND", "warning: AWNET_SHUTDOWN_SECOND is no setting: AWNET_SHUTDOWN_SECONDS is meant?"),
        ("AWNET_COLOUR", "warning: AWNET_COLOUR is no setting"),
    ],
)
def test_an_unknown_variable_is_told_with_the_nearest_name(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on: another program of the machine may read that variable."""
    monkeypatch.setenv(given, "3")
    assert read_settings([]) == Settings()
    assert capsys.readouterr().err.splitlines() == [said]


def test_the_links_of_kubernetes_services_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One called awnet sets AWNET_PORT in every pod of its namespace, one called awnet-grpc AWNET_GRPC_PORT."""
    for service, ports in {"AWNET": (8000, 8001), "AWNET_GRPC": (8001,), "AWNET_ADMIN": (8002,)}.items():
        monkeypatch.setenv(f"{service}_SERVICE_HOST", "10.96.0.7")
        monkeypatch.setenv(f"{service}_SERVICE_PORT", str(ports[0]))
        monkeypatch.setenv(f"{service}_SERVICE_PORT_HTTP", str(ports[0]))
        monkeypatch.setenv(f"{service}_PORT", f"tcp://10.96.0.7:{ports[0]}")
        for port in ports:
            monkeypatch.setenv(f"{service}_PORT_{port}_TCP", f"tcp://10.96.0.7:{port}")
            for part, value in {"PROTO": "tcp", "PORT": str(port), "ADDR": "10.96.0.7"}.items():
                monkeypatch.setenv(f"{service}_PORT_{port}_TCP_{part}", value)
    settings = read_settings([])
    assert (settings.port, settings.grpc_port, settings.admin_port) == (8000, None, 8002)
    assert capsys.readouterr().err == ""
    assert read_settings(["--port", "9000"]).port == 9000
    monkeypatch.setenv("AWNET_PORT", "seventy")
    assert main([]) == 2
