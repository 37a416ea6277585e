"""OpenTelemetry's own variables are honoured, below every place where our settings may stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.__main__ import main, read_settings
from server.settings.sources import opentelemetry

URL = "http://collector:4318"


@pytest.fixture(autouse=True)
def none(no_variables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio", "parents"),
    [
        ("always_on", None, 1.0, False),
        ("always_off", "0.5", 0.0, False),
        ("traceidratio", "0.25", 0.25, False),
        ("parentbased_always_on", None, 1.0, True),
        ("parentbased_always_off", None, 0.0, True),
        ("parentbased_traceidratio", "0.25", 0.25, True),
        ("parentbased_traceidratio", None, 1.0, True),
        (None, "0.25", 1.0, True),
    ],
)
def test_the_standard_samplers_are_ratio_and_parents(
    sampler: str | None, argument: str | None, ratio: float, parents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", URL)
    for name, value in (("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)):
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = read_settings([])
    assert (settings.otlp_endpoint, settings.trace_ratio, settings.trace_parents) == (URL, ratio, parents)


def test_ours_win_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option over variable over file over OTEL_*; nothing at all in ours turns theirs off."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", URL)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "5000")
    assert read_settings([]).trace_ratio == 0.1
    assert read_settings([]).otlp_metrics_seconds == 5
    file = tmp_path / "awnet.toml"
    file.write_text('trace_ratio = 0.2\notlp_endpoint = "http://file:4318"\n')
    read = read_settings([f"--config={file}"])
    assert (read.trace_ratio, read.otlp_endpoint) == (0.2, "http://file:4318")
    monkeypatch.setenv("AWNET_TRACE_RATIO", "0.3")
    assert read_settings([f"--config={file}"]).trace_ratio == 0.3
    assert read_settings([f"--config={file}", "--trace-ratio=0.4"]).trace_ratio == 0.4
    monkeypatch.setenv("AWNET_OTLP_ENDPOINT", "")
    assert read_settings([]).otlp_endpoint == ""


@pytest.mark.parametrize(
    ("variables", "signals"),
    [
        ({}, "traces"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, "traces,metrics"),
        ({"OTEL_LOGS_EXPORTER": "otlp", "OTEL_TRACES_EXPORTER": "none"}, "logs"),
        ({"OTEL_METRICS_EXPORTER": "none"}, "traces"),
    ],
)
def test_each_signal_has_its_variable(variables: dict[str, str], signals: str) -> None:
    assert opentelemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": URL} | variables)["otlp_signals"] == signals


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "nonsense", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_without_an_endpoint_or_anything_to_send_all_is_off(variables: dict[str, str]) -> None:
    """Whatever else is there for other programs does not matter."""
    assert opentelemetry(variables) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_METRICS_EXPORTER", "console"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
    ],
)
def test_what_is_not_spoken_here_ends_the_start_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", URL)
    monkeypatch.setenv(name, value)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("bad", ["collector:4317", "grpc://x:1", "http://", "http://x y", "http://x?y=z"])
def test_an_endpoint_that_is_no_url_is_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--otlp-endpoint={bad}"]) == 2
    assert "setting otlp_endpoint" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["", "spans", "traces,spans", ","])
def test_signals_that_are_none_are_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--otlp-signals={bad}"]) == 2
    assert "setting otlp_signals" in capsys.readouterr().err
