"""The settings of the server, read, checked, and what follows from them. Nothing else reads the environment.

An option wins over the variable of that setting, the variable over the file, the file over the variables of
OpenTelemetry; `sources` reads them. `declared` has the list.
"""

from __future__ import annotations

import ipaddress
import re
from typing import cast

from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ..core.model_source import parse_model_source
from ..core.policy import POLICIES, Policies, Policy
from ..core.version import MODEL_NAME, WHAT, parse_version
from .declared import Declared
from .renames import option, renamed
from .sources import SIGNALS, Variables, file_of, opentelemetry, read

SHARE = r"0|1|0?\.[0-9]+|1\.0+"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST_NAME = re.compile(r"\[?[0-9A-Fa-f:.]+\]?|[A-Za-z0-9._-]+")


class Settings(Declared):
    """The server's settings; see above for where they come from."""

    model_config = SettingsConfigDict(defer_build=False)

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
