"""The parts of one process, made as the settings ask for them: sockets, certificate, engine, metrics, service."""

from __future__ import annotations

import hashlib
import secrets
import socket

from ..access.rates import Rates, default_rate
from ..core.engine import Engine
from ..engines.model_file import repository_of
from ..errors import StartupError
from ..monitoring.clients import TopClients
from ..monitoring.detection import Monitor
from ..monitoring.metrics import Metrics
from ..monitoring.request import Telemetry
from ..ports.listening import bind, listen_all
from ..ports.tls import Certificates
from ..service.service import Service
from ..settings.settings import Settings
from ..workers.member import Assignment


def open_ports(settings: Settings) -> dict[str, list[socket.socket]]:
    """Sockets of each port, listening. That of gRPC is only tried: it makes its own. Raises StartupError."""
    if settings.grpc_port is not None:
        for tried in bind(settings.host, settings.grpc_port, "--grpc-port"):
            tried.close()
    return listen_all(settings.http_ports, *settings.protected)


def certificates_of(settings: Settings, metrics: Metrics) -> Certificates | None:
    """What the ports speak TLS with, and `metrics` of it; None where they do not. Raises StartupError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    found = Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, metrics.certificate_read)
    metrics.follow_certificate(lambda: found.current.not_after)
    return found


def make_service(settings: Settings, assignment: Assignment | None = None) -> Service:
    """The service of this process with its engine, metrics and monitor, not started. Raises StartupError."""
    monitor = Monitor(TopClients(salt=assignment.salt) if assignment else None)
    models = [settings.model, *settings.further_models]
    metrics = Metrics(monitor, settings.queue_capacity, models, settings.golden_probe_seconds)
    engine = make_engine(settings, metrics)
    telemetry = make_telemetry(settings, metrics, assignment) if settings.otlp_endpoint else None
    if assignment is None:
        return Service(settings, engine, metrics, monitor, telemetry=telemetry)
    rates = Rates(default_rate(settings), assignment.rates, assignment.salt)
    return Service(settings, engine, metrics, monitor, assignment.member, rates, telemetry)


def make_telemetry(settings: Settings, metrics: Metrics, assignment: Assignment | None) -> Telemetry:
    """What sends spans elsewhere, not started. Raises StartupError."""
    try:
        # Imported only where it is asked for: it is an extra, and costs 20 MB.
        from ..telemetry.exporting import Exporting
    except ModuleNotFoundError as error:
        raise StartupError(
            f"otlp_endpoint needs the package {error.name}: install the extra, pip install '.[telemetry]' in a "
            "checkout, or set AWNET_OTLP_ENDPOINT to nothing"
        ) from None
    metrics.expect_telemetry(signal for signal in settings.telemetry_signals if signal != "findings")
    salt = assignment.salt if assignment else secrets.token_bytes(16)
    return Exporting(
        settings.otlp_endpoint,
        settings.telemetry_signals,
        ratio=settings.trace_ratio,
        follow=settings.trace_parents,
        scheme="https" if settings.tls_certificate else "http",
        worker=assignment.member.number if assignment else None,
        instance=hashlib.sha256(b"instance" + salt).hexdigest()[:32],  # the salt itself is nobody's to know
        metrics_seconds=settings.otlp_metrics_seconds,
        count=metrics.telemetry,
    )


def make_engine(settings: Settings, metrics: Metrics) -> Engine:
    """The engine that the settings ask for, not started. Raises StartupError."""
    if settings.engine == "triton":
        # Imported only here: tritonclient and grpc cost 26 MB.
        from ..engines.triton.engine import TritonEngine, parse_metadata

        return TritonEngine(
            [url.strip() for url in settings.triton_urls.split(",") if url.strip()],
            tls=settings.triton_tls,
            ca=settings.triton_ca,
            metadata=parse_metadata(settings.triton_metadata),
            in_flight=settings.triton_in_flight,
            failures=settings.breaker_failures,
            probe_seconds=settings.breaker_seconds,
            silence_seconds=settings.triton_silence_seconds,
            decode_threads=settings.threads,
            capacity=settings.queue_capacity,
            on_state=metrics.engine.backend,
        )
    from ..engines.onnxruntime import EmbeddedEngine  # a server before Triton has no ONNX Runtime

    return EmbeddedEngine(
        repository_of(settings.repository, settings.model, settings.signing_key),
        threads=settings.threads,
        lone_threads=settings.lone_threads,
        max_batch=settings.max_batch,
        capacity=settings.queue_capacity,
        delay=settings.batch_delay_ms / 1000,
        stall=settings.stall_seconds,
        repository_seconds=settings.repository_seconds,
        on_batch=metrics.batch,
    )
