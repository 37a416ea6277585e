"""deploy/compose.yaml: a valid Compose file that gives nothing away. No container engine is needed to read it."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PRIVATE = {"triton": ("8100", "8101", "8102"), "replica-1": ("8002",), "replica-2": ("8002",)}


def problems(document: dict[str, Any]) -> list[str]:
    """What the schema of the Compose specification, as check-jsonschema carries it, finds wrong."""
    text = (files("check_jsonschema.builtin_schemas") / "vendor" / "compose-spec.json").read_text("utf-8")
    schema = json.loads(text)
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def test_the_file_follows_the_compose_specification() -> None:
    """By its published JSON schema."""
    assert problems(COMPOSE) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["services"]["replica-1"].update(read_onyl=True),
        lambda c: c["services"]["haproxy"].update(cap_drop="ALL"),
        lambda c: c["services"]["triton"]["healthcheck"].update(retires=3),
    ],
)
def test_the_schema_would_notice_a_mistake(spoil: Any) -> None:
    """A check that accepts everything is none."""
    spoiled = copy.deepcopy(COMPOSE)
    spoil(spoiled)
    assert problems(spoiled)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_limited(name: str) -> None:
    """Read-only root with a bounded /tmp, no capabilities, no new privileges, limits, and a version that is named."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert [mount for mount in service["tmpfs"] if mount.startswith("/tmp:") and "size=" in mount]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    tag = service["image"].rpartition(":")[2]
    assert tag[0].isdigit() or (tag[0] == "v" and tag[1].isdigit())
    assert "privileged" not in service and service.get("network_mode") is None


def test_every_service_has_a_health_check() -> None:
    """In this file or, for the replicas, in the Dockerfile."""
    without = {name for name, service in SERVICES.items() if "healthcheck" not in service}
    assert without == {"replica-1", "replica-2"}
    assert "\nHEALTHCHECK " in (ROOT / "Dockerfile").read_text("utf-8")


def test_no_control_port_is_published_and_the_rest_only_on_the_loopback() -> None:
    """Triton's ports can load models and its build may hold known faults; the admin calls can change what is served."""
    published = {name: [str(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    for name, ports in PRIVATE.items():
        assert published[name] == []
        assert not [p for entries in published.values() for p in entries if p.rpartition(":")[2] in ports]
    for entries in published.values():
        for entry in entries:
            assert entry.startswith(("127.0.0.1:", "${AWNET_PUBLISH:-127.0.0.1:"))


def test_triton_is_only_where_it_is_spoken_to() -> None:
    """On an internal network of its own with the replicas and Prometheus, and only with its profile."""
    triton = SERVICES["triton"]
    assert triton["networks"] == ["engine"]
    assert COMPOSE["networks"]["engine"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "engine" in service["networks"]} == {
        "triton",
        "replica-1",
        "replica-2",
        "prometheus",
    }
    assert triton["profiles"] == ["triton"]
    assert not [option for option in triton["command"] if "explicit" in option]


def test_whatever_is_mounted_exists_and_cannot_be_written() -> None:
    """A misspelt path would be made as an empty folder by the engine, without a word."""
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]
            assert target.startswith("/")


def test_the_replicas_may_take_as_long_to_stop_as_they_need() -> None:
    """The engine's patience is longer than drain and shutdown together."""
    for name in ("replica-1", "replica-2"):
        settings = SERVICES[name]["environment"]
        needed = float(settings["AWNET_DRAIN_SECONDS"]) + float(settings["AWNET_SHUTDOWN_SECONDS"])
        assert float(SERVICES[name]["stop_grace_period"].rstrip("s")) > needed


def test_every_variable_of_the_replicas_is_a_setting() -> None:
    """A misspelt one would be ignored."""
    from server.settings.settings import Settings

    known = {f"AWNET_{name.upper()}" for name in Settings.model_fields}
    for name in ("replica-1", "replica-2"):
        assert SERVICES[name]["environment"].keys() <= known
        values = {key[6:].lower(): value for key, value in SERVICES[name]["environment"].items()}
        Settings(**{key: value for key, value in values.items() if "${" not in value})


def test_prometheus_scrapes_what_the_file_starts() -> None:
    """Each target is a service, at the port it listens on."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
    targets = [t for job in config["scrape_configs"] for s in job.get("static_configs", []) for t in s["targets"]]
    assert {target.partition(":")[0] for target in targets} <= SERVICES.keys()
    assert {"replica-1:8000", "replica-2:8000", "haproxy:8404"} <= set(targets)
