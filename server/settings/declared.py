"""Every setting with its type, range, default and the sentence that `--help` and docs/settings.md have of it.

A setting `max_batch` is the option `--max-batch`, the variable `AWNET_MAX_BATCH` and a line of the file that `config`
names. What has to fit together, and what follows from settings, is in `settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..core.answers import Answers
from ..core.bundled import model_repository
from ..core.modes import Mode
from ..core.policy import At, Policy, Unsure
from ..core.version import MODEL_NAME
from .sources import PREFIX

Seconds = Annotated[float, Field(le=86_400)]  # what is longer than a day is a slip, and no timer takes any number


class Declared(BaseSettings):
    """The settings in the order in which they are documented."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_parse_none_str="none",
        allow_inf_nan=False,
        defer_build=True,  # nobody makes one: only `Settings` is
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
