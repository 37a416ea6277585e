"""The benchmark of precisions measures four models of one network, and tells all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.harness.networks import randomised
from benchmarks.model import precisions
from training.data.images import Split
from training.networks.awnet import AWNet, AWNetConfig


@pytest.fixture(scope="module")
def net() -> AWNet:
    torch.manual_seed(0)
    net = randomised(AWNet(AWNetConfig(width=4)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())
    return net


@pytest.fixture(scope="module")
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.zeros(40, dtype=torch.int64))


@pytest.fixture(scope="module")
def made(net: AWNet, split: Split) -> dict[str, bytes]:
    return precisions.models(net, split.images)


def test_only_what_quantises_the_detector_moves_scores(net: AWNet, split: Split, made: dict[str, bytes]) -> None:
    """Float16 weights change nothing, int8 the classes at most, int8 of everything the scores as well."""
    groups = precisions.image_groups(net, split, [], 2)
    assert {name: len(images) for name, images in groups.items()} == {"natural": 20, "corrupted": 4, "T1": 2, "T2": 2}
    found = precisions.changes(made, groups)
    assert list(found) == list(precisions.KINDS)
    for kind in ("float16-weights", "int8"):
        assert max(found[kind]["score_moves"].values()) < 1e-6
        assert found[kind]["auroc"] == pytest.approx(found["float32"]["auroc"], abs=1e-3)
    assert found["float16-weights"]["same_class"]["natural"] == 1
    assert max(found["int8 with the detector"]["score_moves"].values()) > 1e-5


def test_tables_hold_every_model(net: AWNet, split: Split, made: dict[str, bytes], tmp_path: Path) -> None:
    """Size, load, latency at three batch sizes and the changes of each, in JSON as in Markdown."""
    groups = precisions.image_groups(net, split, [], 2)
    part = {
        "checkpoint": "random.pt",
        "width": 4,
        "megabytes": {kind: len(model) / 1e6 for kind, model in made.items()},
        "load": {kind: {"seconds": 0.1, "mb": 2.0} for kind in made},
        "latency": precisions.latencies(made, 32, rounds=1, slice_seconds=0.001),
        "images": {name: len(images) for name, images in groups.items()},
        "changes": precisions.changes(made, groups),
    }
    machine = {"cpu": "some", "cores": 2, "vnni": True, "onnxruntime": "1", "load_before": [0.0]}
    document = {
        "command": "python -m benchmarks.model.precisions",
        "machine": machine,
        "rounds": 1,
        "checkpoints": [part],
    }
    text = precisions.markdown(json.loads(json.dumps(document)))
    assert [row["batch"] for row in part["latency"]] == [1, 8, 32]
    assert all(row["over_float32"]["float32"] == 1 for row in part["latency"])
    assert all(text.count(f"\n| {kind} |") == 2 for kind in precisions.KINDS)
