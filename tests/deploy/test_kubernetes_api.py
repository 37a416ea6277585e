"""What an API server refuses and no schema says, of what the chart renders. None is asked: these are its rules."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.test_kubernetes import CASES, CHART, rendered, resources
from tests.requires import requires

pytestmark = requires("helm")

# Lists that are merged by keys (x-kubernetes-list-map-keys): server-side apply refuses one that has a key twice.
KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "env": (("name",),),
    "volumes": (("name",),),
    "volumeMounts": (("mountPath",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "ports": (("containerPort", "protocol"), ("port", "protocol"), ("name",)),
}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
PORT = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
SECRET_BYTES = 1 << 20


def lists(node: Any) -> Iterator[tuple[str, list[Any]]]:
    """Each list of objects below a node, with the name that it has there."""
    if isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
                yield name, value
            yield from lists(value)
    elif isinstance(node, list):
        for value in node:
            yield from lists(value)


def twice(resource: dict[str, Any]) -> list[tuple[str, Any]]:
    """Keys that stand in one list more than once."""
    found = []
    for name, entries in lists(resource):
        for keys in KEYS.get(name, ()):
            told = [tuple(entry[key] for key in keys) for entry in entries if all(key in entry for key in keys)]
            found += [(name, key) for key in set(told) if told.count(key) > 1]
    return found


@pytest.mark.parametrize("case", CASES)
def test_lists_that_are_merged_by_a_key_have_it_once(case: str) -> None:
    for name, resource in resources(CASES[case]).items():
        if resource["kind"] != "NetworkPolicy":  # its rules are no such lists
            assert twice(resource) == [], name


def test_a_key_that_stands_twice_is_found() -> None:
    """A check that accepts everything is none."""
    assert twice({"spec": {"env": [{"name": "A"}, {"name": "A", "value": "1"}]}}) == [("env", ("A",))]
    ports = [{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 1, "protocol": "UDP"}]
    assert twice({"ports": ports}) == []


@pytest.mark.parametrize("case", CASES)
def test_names_and_labels_are_such_as_are_taken(case: str) -> None:
    """Of resources, volumes, containers and ports; values of labels; and a selector that finds its own pods."""
    for (kind, name), resource in resources(CASES[case]).items():
        assert NAME.fullmatch(name), name
        assert all(LABEL.fullmatch(value) for value in resource["metadata"].get("labels", {}).values())
        for listed, entries in lists(resource):
            if listed in ("containers", "initContainers", "volumes"):
                assert all(NAME.fullmatch(entry["name"]) for entry in entries)
            if listed == "ports" and kind != "NetworkPolicy":
                assert all(PORT.fullmatch(entry["name"]) for entry in entries)
        if kind == "Deployment":
            wanted = resource["spec"]["selector"]["matchLabels"]
            assert wanted.items() <= resource["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("case", ["plain", "everything"])
def test_helm_has_room_for_its_release(case: str) -> None:
    """It keeps chart and resources, zipped, in a Secret, which holds a MiB; half of that is left for values."""
    files = {str(path): path.read_text("utf-8") for path in sorted(CHART.rglob("*")) if path.is_file()}
    for folder in CHART.glob("files/*"):  # links to the rules and dashboards of the house
        files |= {str(path): path.read_text("utf-8") for path in sorted(folder.iterdir())}
    chart = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
    release = json.dumps({"chart": chart, "manifest": rendered(CASES[case])})
    assert len(base64.b64encode(base64.b64encode(gzip.compress(release.encode())))) < SECRET_BYTES // 2
