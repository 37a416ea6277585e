"""Where settings come from beside the command line: variables, and a TOML file; both also under old names."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from ..core.regular_files import read_regular
from .renames import SETTINGS, renamed, variable

PREFIX = "AWNET_"
MAX_CONFIG_BYTES = 1 << 20

# Read by the other programs of this project: tests, benchmarks and the compose file.
OTHERS = frozenset(
    {"AWNET_DATA_DIR", "AWNET_RESNET56", "AWNET_REQUIRE", "AWNET_TRITON_VENV", "AWNET_PUBLISH", "AWNET_BALANCE"}
)

# What Kubernetes sets in every pod for a Service that is called awnet, or awnet-grpc, in Docker's old way.
_LINK = re.compile(r"AWNET(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)")
_LINKED = re.compile(r"(tcp|udp|sctp)://")


def unknown_variables(environment: Mapping[str, str], fields: Iterable[str]) -> list[str]:
    """A warning for each variable that begins like one of ours and is none, with the nearest name where one is near.

    Args:
        fields: names of the settings.
    """
    known = [variable(name) for name in (*fields, *SETTINGS)]
    warnings = []
    for name, value in environment.items():
        given = name.upper()
        linked = _LINK.fullmatch(given) and (given not in known or _LINKED.match(value))
        if not given.startswith(PREFIX) or given in known or given in OTHERS or linked:
            continue
        near = get_close_matches(given, known, 1, 0.8)
        warnings.append(f"warning: {name} is no setting" + (f": {near[0]} is meant?" if near else ""))
    return warnings


def file_of(given: Mapping[str, Any]) -> Path | None:
    """The file of settings that options, or else the variable, name."""
    named = given.get("config", os.environ.get(variable("config")))
    return None if named in (None, "", "none") else Path(named)


def read(path: Path, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The settings in a TOML file, as they would stand in variables. Raises ValueError."""
    try:
        document = tomllib.loads(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except OSError as error:
        raise ValueError(f"config {path}: {error.strerror}") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"config {path}: {error}") from None
    known = {*fields, *SETTINGS} - {"config"}
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            near = get_close_matches(name, known, 1, 0.6)
            raise ValueError(f"config {path}: {name} is no setting" + (f": {near[0]} is meant?" if near else ""))
        if not isinstance(value, str | int | float):
            raise ValueError(f"config {path}: {name} must be text, a number, true or false")
        optional = type(None) in get_args(fields[SETTINGS.get(name, name)].annotation)
        found[name] = None if optional and value == "none" else str(value)
    return renamed(found, lambda name: f"{name} in {path}")


class Variables(EnvSettingsSource):
    """`AWNET_*`, under new names and old ones, without the links of Kubernetes' Services.

    What `given` holds is not looked up: an option wins over a variable.
    """

    def __init__(self, settings_cls: type[BaseSettings], given: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._given = given

    def __call__(self) -> dict[str, Any]:
        found = {
            name: value
            for name, value in super().__call__().items()
            if not (name.endswith("port") and isinstance(value, str) and _LINKED.match(value))
        }
        old = {
            name: self.env_vars.get(variable(name).lower()) for name in SETTINGS if SETTINGS[name] not in self._given
        }
        return renamed(found | {name: value for name, value in old.items() if value is not None}, variable)


SIGNALS = ("traces", "metrics", "logs")
# OTEL_TRACES_SAMPLER -> share of requests, None: OTEL_TRACES_SAMPLER_ARG; and whether callers decide.
_SAMPLERS: Mapping[str, tuple[str | None, bool]] = {
    "always_on": ("1", False),
    "always_off": ("0", False),
    "traceidratio": (None, False),
    "parentbased_always_on": ("1", True),
    "parentbased_always_off": ("0", True),
    "parentbased_traceidratio": (None, True),
}


def opentelemetry(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What OpenTelemetry's own variables say of our settings, as these would stand in variables. Raises ValueError.

    Its other variables, for headers, certificates, compression, time limits and the names of the service, its exporters
    read themselves.
    """
    given = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_") and value.strip()}
    endpoint = given.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if endpoint is None or given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    protocol = given.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol[:40]!r} is not spoken, only http/protobuf")
    found: dict[str, Any] = {"otlp_endpoint": endpoint}
    sampler = given.get("OTEL_TRACES_SAMPLER")
    if sampler is not None:
        if sampler not in _SAMPLERS:
            raise ValueError(f"OTEL_TRACES_SAMPLER: {sampler[:40]!r} is none of {', '.join(_SAMPLERS)}")
        ratio, found["trace_parents"] = _SAMPLERS[sampler]
        found["trace_ratio"] = _number("OTEL_TRACES_SAMPLER_ARG", given, "1") if ratio is None else ratio
    if "OTEL_METRIC_EXPORT_INTERVAL" in given:
        found["otlp_metrics_seconds"] = _number("OTEL_METRIC_EXPORT_INTERVAL", given) / 1000
    signals = ["traces"]
    for signal in SIGNALS:
        exporter = given.get(f"OTEL_{signal.upper()}_EXPORTER")
        if exporter not in (None, "otlp", "none"):
            raise ValueError(f"OTEL_{signal.upper()}_EXPORTER: {exporter[:40]!r} is neither otlp nor none")
        if exporter == "none" and signal in signals:
            signals.remove(signal)
        elif exporter == "otlp" and signal not in signals:
            signals.append(signal)
    return found | {"otlp_signals": ",".join(signals)} if signals else {}


def _number(name: str, given: Mapping[str, str], default: str = "") -> float:
    try:
        return float(given.get(name, default))
    except ValueError:
        raise ValueError(f"{name}: {given[name][:40]!r} is no number") from None
