"""Every setting of the server. Nothing else reads the environment; `sources` does it for them.

A setting `max_batch` is the option `--max-batch`, the variable `AWNET_MAX_BATCH` and a line of the file that `config`
names; the option wins over the variable, the variable over the file, the file over the variables of OpenTelemetry.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ..core.answers import Answers
from ..core.bundled import model_repository
from ..core.model_source import parse_model_source
from ..core.modes import Mode
from ..core.policy import POLICIES, At, Policies, Policy, Unsure
from ..core.version import MODEL_NAME, WHAT, parse_version
from .renames import option, renamed
from .sources import PREFIX, SIGNALS, Variables, file_of, opentelemetry, read

SHARE = r"0|1|0?\.[0-9]+|1\.0+"

Seconds = Annotated[float, Field(le=86_400)]  # what is longer than a day is a slip, and no timer takes any number

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST_NAME = re.compile(r"\[?[0-9A-Fa-f:.]+\]?|[A-Za-z0-9._-]+")


class Settings(BaseSettings):
    """The server's settings; see above for where they come from."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_parse_none_str="none", allow_inf_nan=False
    )

    config: Path | None = Field(
        None, description="TOML file of settings, such as `port = 9000`; variables and options win over it."
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="Port of the Open Inference Protocol over gRPC; 'none' leaves it off."
    )
    admin_host: str = Field("127.0.0.1", description="Address of the admin port; keep it a private one.")
    admin_port: int | None = Field(
        8002, ge=0, le=65535, description="Admin port; 0 takes a free one, 'none' leaves it off."
    )

    admin_hosts: str = Field(
        "",
        description="Names by which the admin port may be asked, by commas, beside localhost and its address.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the port for metrics.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port that answers /metrics, which the public one does not then; or 'none'."
    )

    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate, and of what signed it: all ports speak TLS then."
    )
    tls_key: Path | None = Field(None, description="PEM file of its private key, not encrypted.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of authorities: only clients with a certificate of theirs are let in."
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages whose scripts may read answers, separated by commas; '*' for all.",
    )

    engine: Literal["embedded", "triton"] = Field(
        "embedded", description="What runs the model: ONNX Runtime in this process, or NVIDIA Triton over gRPC."
    )
    repository: Path = Field(
        default_factory=model_repository,
        description="Folder that holds <model>/<version>/model.onnx, or one model file; "
        "without one here, the bundled one.",
    )
    model: str = Field("awnet", pattern=f"^{MODEL_NAME}$", description="Default model, for requests that name none.")
    models: str = Field("", description="Further models to serve, names separated by commas.")
    mode: Mode = Field(
        "auto", description="Operating mode of requests that name none; versions that lack it are not served."
    )
    version: str = Field("latest", description="Version of that model to serve: a number, or 'latest' for the highest.")
    versions_kept: int = Field(2, ge=1, description="Newest versions of each model that are kept loaded.")
    canary: str = Field("", description="VERSION:SHARE routes that share of unversioned requests to VERSION.")
    shadow: str = Field("", description="VERSION also answers every unversioned request, only to be compared.")
    golden_probe_seconds: Seconds = Field(
        10.0, ge=0, description="Send each open version a golden probe this often; 0 sends none."
    )
    poll_seconds: Seconds = Field(
        5.0, ge=0, description="Check for new versions this often; 0 only on SIGHUP or by an admin call."
    )
    repository_seconds: Seconds = Field(
        30.0, gt=0, description="Longest wait for files of the repository; a mount that does not answer is given up."
    )
    signing_key: Path | None = Field(
        None, description="PEM file of an Ed25519 public key; versions without its signature are refused."
    )

    model_source: str = Field(
        "",
        description="Where a version of the default model is fetched from before it is served, into the repository: "
        "https://, hf://, s3://, oci:// or file://, pinned by a digest.",
    )
    model_source_seconds: Seconds = Field(600.0, gt=0, description="Longest time for that.")

    api_keys: Path | None = Field(
        None, description="TOML file of API keys, read again when it changes; 'none' asks nobody for a key."
    )
    answers: Answers = Field(
        "exact", description="How much of the scores is told: all, one of five levels, or class and verdict only."
    )

    requests_per_second: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Most requests a second of one client, each further image counting as one; 0 is no limit.",
    )
    request_burst: int = Field(
        0, ge=0, le=1_000_000, description="Requests that it may send at once; 0 takes as many as in a second."
    )
    queue_share: float = Field(
        1.0, gt=0, le=1, description="Share of the queue that one client may take; 1 is no limit."
    )

    prior: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Share of attacked images among all, as far as you know; `probability` rests on it.",
    )

    policy: Policy = Field(
        "flag",
        description="What becomes of flagged images: 'flag' tells the verdict, 'abstain' gives no class, 'reject' "
        "refuses the image, 'observe' only counts what those two would do.",
    )
    policies: str = Field(
        "",
        description="Models with a policy of their own: MODEL=POLICY, separated by commas; that of a key goes first.",
    )
    policy_at: At = Field("adversarial", description="Least verdict that 'abstain' and 'reject' act upon.")
    unsure: Unsure = Field(
        "closed",
        description="Images that no threshold speaks for are withheld by a policy ('closed') or answered ('open').",
    )

    timeout_seconds: Seconds = Field(10.0, gt=0, description="Longest time for a request; a client may ask for less.")
    batch_delay_ms: float = Field(
        1.0,
        ge=0,
        le=60_000,
        description="Longest wait for a fuller batch while others run; an idle server never waits.",
    )

    triton_urls: str = Field("127.0.0.1:8101", description="gRPC addresses of Triton, separated by commas.")
    triton_tls: bool = Field(False, description="Speak TLS to Triton.")
    triton_ca: Path | None = Field(None, description="PEM file of the authority that signed Triton's certificate.")
    triton_metadata: str = Field("", description="Metadata of every call to Triton: key=value, separated by commas.")
    triton_in_flight: int = Field(64, ge=1, description="Most images in flight at each Triton.")
    triton_silence_seconds: Seconds = Field(
        0.6, gt=0, description="The breaker of a Triton opens when heartbeats go unanswered for this long."
    )
    breaker_failures: int = Field(3, ge=1, description="Consecutive failures that open the breaker of a Triton.")
    breaker_seconds: Seconds = Field(1.0, gt=0, description="How often a probe tries to close an open breaker.")

    trusted_proxies: str = Field(
        "",
        description="Addresses and networks (CIDR), separated by commas, of proxies that may name a request's client.",
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for", description="The header in which they do; the other one is as the client sent it."
    )
    proxy_protocol: bool = Field(
        False,
        description="Their connections to the public port begin with a PROXY header (version 1 or 2), naming clients.",
    )

    max_connections: int = Field(1024, ge=1, le=65536, description="Most open HTTP connections of a port.")
    max_connections_per_client: int = Field(
        256, ge=0, description="Most of them of one client, an IPv4 address or an IPv6 /64; 0 is no limit."
    )
    connections_per_second: float = Field(
        1000.0, ge=0, le=1e6, description="Most new connections that a port takes in a second; 0 is no limit."
    )
    connections_per_second_per_client: float = Field(
        250.0, ge=0, le=1e6, description="Most of them of one client; further ones wait up to a second. 0 is no limit."
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, description="Largest header of a request, its first line included."
    )
    header_seconds: Seconds = Field(
        10.0, gt=0, description="Longest wait for a connection's first byte, and for the whole header of a request."
    )
    body_seconds: Seconds = Field(
        20.0, gt=0, description="Longest time for a request's body, beside what it takes at the least rate."
    )
    min_body_bytes_per_second: int = Field(8192, ge=1, description="Least rate at which a body has to come.")
    max_held_bytes: int = Field(
        128 << 20, ge=1 << 20, description="Most bytes of unanswered requests' bodies, those below 64 KiB aside."
    )

    grpc_max_calls: int = Field(
        64, ge=1, le=65536, description="Most gRPC calls at a time; three quarters of them of one client."
    )

    max_body_bytes: int = Field(8 << 20, ge=1, le=1 << 30, description="Largest request body.")
    max_pixels: int = Field(
        16_000_000,
        ge=1,
        description="Most pixels that an image may be decoded to; of a large JPEG that is less than it has.",
    )
    min_side: int = Field(8, ge=1, description="Smallest width or height of an image, pixels.")
    max_images: int = Field(32, ge=1, description="Most images in one request.")
    max_request_pixels: int = Field(
        32_000_000, ge=1, description="Most pixels that the images of one request may be decoded to, together."
    )
    decode_workers: int = Field(
        0, ge=0, description="Processes for images that are not cheap to decode; 0 takes as many as inference threads."
    )
    decode_seconds: Seconds = Field(
        5.0, gt=0, description="CPU time after which the decoding of an image is given up, and the image refused."
    )
    decode_queue_pixels: int = Field(
        256_000_000, ge=1, description="Pixels that may wait for those processes; further requests get 503."
    )

    workers: int = Field(1, ge=1, le=64, description="Worker processes; one needs no supervisor.")
    threads: int = Field(
        0, ge=0, description="Inference threads of each worker; 0 divides the usable cores among the workers."
    )
    lone_threads: int = Field(
        1,
        ge=0,
        description="Of them, those that run an image while no other is there; 0 takes all. Others than 1 wait "
        "actively: one client is answered sooner, and cores are busy for it.",
    )
    max_batch: int = Field(8, ge=1, description="Most images in one execution of the model.")
    queue_capacity: int = Field(256, ge=1, description="Images that may wait or run; further requests get 503.")
    retry_after_seconds: int = Field(1, ge=1, description="Retry-After of a 503 answer.")

    answer_cache: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Answers that are kept, so that the same image from the same caller need not be run again; 0 "
        "keeps none.",
    )
    answer_cache_shared: bool = Field(
        False,
        description="Callers share these answers, and so can learn by the time that one takes what others have asked.",
    )

    query_guard: Literal["off", "observe", "flag", "slow"] = Field(
        "off",
        description="What is done about a client that asks about nearly the same image too often: 'observe' counts "
        "and logs it, 'flag' tells it in its answers, 'slow' lets those answers wait or refuses them.",
    )
    query_guard_images: int = Field(
        64, ge=8, le=1000, description="Most different images of one client that are nearly the same."
    )
    query_guard_seconds: Seconds = Field(
        3600.0, gt=0, description="In so long; the query guard looks back at least that and at most twice as far."
    )
    query_guard_noise: float = Field(
        1.3,
        ge=0,
        le=16,
        allow_inf_nan=False,
        description="Levels, root mean square, by which like images may differ and count as one, as the frames of a "
        "camera that does not move do; 0 counts all that differ.",
    )

    findings_dir: Path | None = Field(
        None, description="Folder for findings as OCSF events, the journal; 'none' writes none."
    )
    findings_at: At = Field("adversarial", description="Least verdict that is a finding.")
    findings_window_seconds: Seconds = Field(
        60.0, ge=1, description="A finding that goes on is told of once in so long, and closed after a quiet one."
    )
    findings_keep_bytes: int = Field(
        256 << 20, ge=32 << 20, description="Most bytes of the journal of each worker; the oldest files go first."
    )
    findings_keep_days: float = Field(90.0, gt=0, le=36_500, description="Longest time that they are kept.")
    findings_images_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of flagged images that are kept there for evidence, by all workers together; 0 keeps "
        "none.",
    )
    findings_images_days: float = Field(
        7.0, gt=0, le=36_500, description="Longest time that an image is kept after it came last."
    )
    findings_webhook: str = Field("", description="Address that findings are sent to: https, or http on this machine.")
    findings_webhook_secret_file: Path | None = Field(
        None, description="File with the secret that those calls are signed with: 'whsec_' and base64, or text."
    )
    findings_syslog: str = Field(
        "", description="Syslog that findings are sent to: udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT."
    )
    findings_ca: Path | None = Field(
        None,
        description="PEM file of authorities that may have signed the certificates of those two, beside the usual.",
    )

    page: bool = Field(True, description="Serve the page for people at /.")
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        le=86_400,
        description="Close a connection that has been idle this long; above the load balancer's own limit.",
    )
    stall_seconds: Seconds = Field(
        10.0, gt=0, description="Readiness is off while images wait and no thread has finished any for this long."
    )
    drain_seconds: Seconds = Field(
        1.0, ge=0, description="After SIGTERM, serve this long with readiness off, so that balancers stop sending."
    )
    shutdown_seconds: Seconds = Field(
        20.0, ge=0, description="Wait this long for requests in flight before closing their connections."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    request_log: bool = Field(False, description="Log one JSON line for each request.")

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#]+[^\s?#]*)?$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318; "
        "nothing is traced or sent without one.",
    )
    otlp_signals: str = Field(
        "traces", description="What is sent there, separated by commas: 'traces', 'metrics', 'logs', 'findings'."
    )
    otlp_metrics_seconds: Seconds = Field(60.0, ge=1, description="How often metrics are sent there.")
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of requests that are traced, of those whose caller has not decided it."
    )
    trace_parents: bool = Field(
        True, description="A caller that sends a traceparent decides whether its request is traced."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then variables, then the file, all of them also under their old names; then OTEL_* variables."""
        given = renamed(init_settings(), option)
        # A worker is given every setting by its supervisor, and reads no file again, which may have changed.
        worker = settings_cls.model_fields.keys() <= given.keys()
        path = None if worker else file_of(given)
        in_file = {} if path is None else read(path, settings_cls.model_fields)
        return (
            InitSettingsSource(settings_cls, given),
            Variables(settings_cls, given),
            InitSettingsSource(settings_cls, in_file),
            InitSettingsSource(settings_cls, {} if worker else opentelemetry()),
        )

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        if value != "latest" and parse_version(value) is None:
            raise ValueError(f"must be a version or 'latest': {WHAT}")
        return value

    @field_validator("model_source")
    @classmethod
    def _model_source(cls, value: str) -> str:
        if value:
            parse_model_source(value)
        return value

    @field_validator("models")
    @classmethod
    def _models(cls, value: str) -> str:
        for name in _names(value):
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(f"{name!r} is no model name")
        return value

    @field_validator("policies")
    @classmethod
    def _policies(cls, value: str, given: ValidationInfo) -> str:
        # A slip in a name would leave that model without its policy.
        served = {given.data.get("model"), *_names(given.data.get("models", ""))}
        named = _pairs(value)
        for name, policy in named:
            if policy not in POLICIES:
                raise ValueError(f"must be MODEL=POLICY, separated by commas, with one of {', '.join(POLICIES)}")
            if name not in served:
                raise ValueError(f"{name!r} is not served")
        if len(dict(named)) < len(named):
            raise ValueError("names a model twice")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _trusted_proxies(cls, value: str) -> str:
        if any(network.prefixlen == 0 for network in _networks(value)):
            raise ValueError("must not hold all addresses: whoever is trusted may name any address as its own")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: str) -> str:
        origins = _names(value)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin) and origins != ["*"]:
                raise ValueError(f"{origin!r} is no origin, such as https://example.org, nor '*' alone")
        return value

    @field_validator("otlp_signals")
    @classmethod
    def _otlp_signals(cls, value: str) -> str:
        if not _names(value) or not set(_names(value)) <= {*SIGNALS, "findings"}:
            raise ValueError(f"must be of {', '.join(SIGNALS)}, findings, separated by commas")
        return value

    @field_validator("admin_hosts")
    @classmethod
    def _admin_hosts(cls, value: str) -> str:
        for name in _names(value):
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name or address without a port")
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: one is given without the other")
        if self.model_source:
            self._source_fits()
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate: without TLS no client shows a certificate")
        if self.request_burst and not self.requests_per_second:
            raise ValueError("request_burst needs requests_per_second: without a rate there is no bucket")
        if self.answer_cache_shared and not self.answer_cache:
            raise ValueError("answer_cache_shared needs answer_cache: no answers are kept that could be shared")
        if (self.findings_webhook or self.findings_syslog) and self.findings_dir is None:
            raise ValueError("findings_webhook and findings_syslog need findings_dir: what is sent is read from there")
        if self.findings_images_bytes and self.findings_dir is None:
            raise ValueError("findings_images_bytes needs findings_dir: images are kept there")
        if "findings" in self.telemetry_signals and self.findings_dir is None:
            raise ValueError("otlp_signals with findings needs findings_dir: what is sent is read from there")
        if bool(self.findings_webhook) != (self.findings_webhook_secret_file is not None):
            raise ValueError("findings_webhook and findings_webhook_secret_file belong together: each call is signed")
        if self.proxy_protocol and not self.trusted_networks:
            raise ValueError("proxy_protocol needs trusted_proxies: a PROXY header is taken from nobody else")
        return self

    def _source_fits(self) -> None:
        """Raises ValueError where a version could not be fetched, or not be trusted."""
        if "repository" not in self.model_fields_set:
            raise ValueError("model_source needs repository: the folder that the version is written to")
        if self.engine != "embedded":
            raise ValueError("model_source needs engine embedded: Triton reads a repository of its own")
        if not parse_model_source(self.model_source).pinned and self.signing_key is None:
            raise ValueError(
                "model_source must end with #sha256=... or, of oci://, with @sha256:..., unless signing_key is given: "
                "awnet pull says the digest"
            )

    @field_validator("canary")
    @classmethod
    def _canary(cls, value: str) -> str:
        version, _, share = value.partition(":")
        if value and (parse_version(version) is None or not re.fullmatch(SHARE, share)):
            raise ValueError("must be VERSION:SHARE with a share from 0 to 1, such as 2:0.05")
        return value

    @field_validator("shadow")
    @classmethod
    def _shadow(cls, value: str) -> str:
        if value and parse_version(value) is None:
            raise ValueError(f"must be a version: {WHAT}")
        return value

    @property
    def further_models(self) -> tuple[str, ...]:
        """Names of `models`, each once, without the default model."""
        return tuple(name for name in dict.fromkeys(_names(self.models)) if name != self.model)

    @property
    def decides(self) -> Policies:
        """What is decided of images that the detector flags or is unsure of."""
        return Policies(self.policy, cast(dict[str, Policy], dict(_pairs(self.policies))), self.policy_at, self.unsure)

    @property
    def http_ports(self) -> dict[str, tuple[str, int, str]]:
        """Host, port and option of each port of HTTP, by what it is for."""
        ports = {"public": (self.host, self.port, "--port")}
        if self.admin_port is not None:
            ports["admin"] = (self.admin_host, self.admin_port, "--admin-port")
        if self.metrics_port is not None:
            ports["metrics"] = (self.metrics_host, self.metrics_port, "--metrics-port")
        return ports

    @property
    def protected(self) -> tuple[bool, bool]:
        """Whether ports speak TLS, and whether callers need keys."""
        return self.tls_certificate is not None, self.api_keys is not None

    @property
    def telemetry_signals(self) -> list[str]:
        """Those of `otlp_signals`."""
        return _names(self.otlp_signals)

    @property
    def origins(self) -> list[str]:
        """Those of `cors_origins`."""
        return _names(self.cors_origins)

    @property
    def admin_names(self) -> list[str]:
        """Those of `admin_hosts`."""
        return _names(self.admin_hosts)

    @property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Those of `trusted_proxies`."""
        return _networks(self.trusted_proxies)

    @property
    def pinned(self) -> int | None:
        """The version to serve; None for the latest."""
        return None if self.version == "latest" else int(self.version)

    @property
    def canary_split(self) -> tuple[int, float] | None:
        """(version, share) of the canary."""
        version, _, share = self.canary.partition(":")
        return (int(version), float(share)) if version else None

    @property
    def shadow_version(self) -> int | None:
        return int(self.shadow) if self.shadow else None


def _names(value: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [name for name in (part.strip() for part in value.split(",")) if name]


def _pairs(value: str) -> list[tuple[str, str]]:
    """NAME and VALUE of each NAME=VALUE of a list separated by commas; VALUE is empty where there is no `=`."""
    return [(name, value) for name, _, value in (part.partition("=") for part in _names(value))]


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(part) for part in _names(text))
