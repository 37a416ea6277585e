"""The settings as options of a command: each once, with its default, its choices and its old name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .renames import SETTINGS, option, variable
from .settings import Settings
from .sources import file_of, unknown_variables

# In `--help` a group begins with this setting, in the order of `Settings`, and goes to the next.
GROUPS = {
    "config": "where settings come from",
    "host": "ports",
    "tls_certificate": "TLS, and pages of other origins",
    "engine": "models",
    "golden_probe_seconds": "the model repository",
    "api_keys": "who may ask, and what is told",
    "requests_per_second": "rates",
    "prior": "verdicts and policies",
    "timeout_seconds": "time and batches",
    "triton_urls": "Triton",
    "trusted_proxies": "proxies",
    "max_connections": "connections",
    "max_body_bytes": "images",
    "workers": "processes and threads",
    "answer_cache": "answer cache",
    "query_guard": "query guard",
    "findings_dir": "findings",
    "page": "page, shutdown and logs",
    "otlp_endpoint": "OpenTelemetry",
}
# What a value is called where the type and the name of its setting do not say it.
_METAVARS = {
    "admin_hosts": "NAME,...",
    "cors_origins": "ORIGIN,...",
    "repository": "PATH",
    "findings_dir": "DIR",
    "findings_webhook": "URL",
    "findings_syslog": "URL",
    "model": "NAME",
    "models": "NAME,...",
    "model_source": "SOURCE",
    "canary": "VERSION:SHARE",
    "shadow": "VERSION",
    "queue_share": "SHARE",
    "prior": "SHARE",
    "policies": "MODEL=POLICY,...",
    "triton_urls": "HOST:PORT,...",
    "triton_metadata": "KEY=VALUE,...",
    "trusted_proxies": "ADDRESS,...",
    "otlp_endpoint": "URL",
    "otlp_signals": "SIGNAL,...",
    "trace_ratio": "SHARE",
}
_UNITS = ("SECONDS", "MS", "BYTES", "PIXELS", "PORT")


class SettingsError(ValueError):
    """Settings that cannot be used; says so in a line for each."""


def add_settings(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Give `parser` an option for each setting; those that are not given are not in its namespace.

    Args:
        hidden: leave them out of `--help`.
    """
    group: Any = parser
    for name, now in [*((name, name) for name in Settings.model_fields), *SETTINGS.items()]:
        field, former = Settings.model_fields[now], name != now
        if name in GROUPS and not hidden:
            group = parser.add_argument_group(GROUPS[name])
        described = argparse.SUPPRESS if hidden or former else f"{field.description}{_default(field)}"
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": described}
        if field.annotation is bool:
            given["action"] = argparse.BooleanOptionalAction
        else:
            if type(None) in get_args(field.annotation):
                given["type"] = lambda text: None if text == "none" else text
            given["metavar"] = _metavar(now, field)
        group.add_argument(option(name), **given)


def _default(field: FieldInfo) -> str:
    """The default in words; nothing where it is nothing."""
    default = field.get_default(call_default_factory=True)
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"


def _metavar(name: str, field: FieldInfo) -> str:
    """What `--help` calls a value."""
    if chosen := choices(name):
        return f"{{{','.join(chosen)}}}"
    types, last = {field.annotation, *get_args(field.annotation)}, name.rpartition("_")[2].upper()
    if name in _METAVARS:
        return _METAVARS[name]
    if Path in types:
        return "FILE"
    return "N" if {int, float} & types and last not in _UNITS else last


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings of options, over those of `AWNET_*` variables, over those of the file that `config` names.

    Variables that begin like one of ours and are none get a warning on stderr.

    Args:
        given: what a parser with `add_settings` found; its other entries are left alone.

    Raises:
        SettingsError: values that are none, a file that cannot be read, or a setting that has two names.
    """
    for warning in unknown_variables(os.environ, Settings.model_fields):
        print(warning, file=sys.stderr)
    known = {name: value for name, value in given.items() if name in Settings.model_fields or name in SETTINGS}
    try:
        return Settings(**known)
    except ValidationError as error:
        lines = []
        for found in error.errors():
            name = ".".join(str(part) for part in found["loc"])
            said = found["msg"].removeprefix("Value error, ")  # pydantic's, before a sentence of ours
            if not name:  # several of them do not fit together
                lines.append(f"settings: {said}")
                continue
            lines.append(f"setting {name} ({_source(name, known)}): {said}{_nearest_choice(name, found['input'])}")
        raise SettingsError("\n".join(lines)) from None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def only_known(rest: Sequence[str]) -> None:
    """Raises SettingsError, with the nearest option, where a parser with `add_settings` left something over."""
    if rest:
        given = rest[0].partition("=")[0]
        near = get_close_matches(given, map(option, Settings.model_fields), 1)
        meant = f"{near[0]} is meant?" if near else "--help lists them"
        raise SettingsError(f"{given} is no option: {meant}")


def choices(name: str) -> tuple[str, ...]:
    """What the setting may be, where that is a short list."""
    annotation = Settings.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _source(name: str, known: Mapping[str, Any]) -> str:
    """Where a setting that is wrong was set, as far as that is to be told: its variable, or the file."""
    path = file_of(known)
    if path is not None and name not in known and variable(name) not in os.environ:
        return f"{name} in {path}"
    return variable(name)


def nearest(value: object, known: Sequence[str]) -> str:
    """Which of those that are known is meant, to be added to an error; nothing where none is near."""
    near = get_close_matches(str(value).lower(), known, 1)
    return f": {near[0]} is meant?" if near else ""


def _nearest_choice(name: str, value: object) -> str:
    return nearest(value, choices(name)) if name in Settings.model_fields else ""
