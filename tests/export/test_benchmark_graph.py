"""The graph benchmark compares what it says it compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.model import graph as benchmark
from benchmarks.model import graph_forms
from export.graph import graph


def test_the_unfused_graph_is_the_same_network() -> None:
    """Fused and unfused differ in form only, so their times can be compared."""
    models = benchmark.graphs(benchmark.random_net(4))
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    fused, unfused = (
        benchmark.session(models[name], benchmark.Settings(1, "all", True)).run(None, {"image": image})
        for name in ("fused", "unfused")
    )
    for ours, theirs in zip(fused, unfused, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_static_graph_is_a_static_network() -> None:
    """Its trunk is the natural branch without omega, its P_type that of the detector."""
    net = benchmark.random_net(4)
    model = benchmark.graphs(net)["static"]
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, p_type = benchmark.session(model, benchmark.Settings(1, "all", True)).run(None, {"image": image.numpy()})
    with torch.no_grad():
        x = image.float() / 255
        signals = net.detect(x)
        plain = signals._replace(omega=tuple(torch.ones_like(o) for o in signals.omega))
        np.testing.assert_allclose(logits, net.classify(x, plain, "nat").numpy(), atol=1e-4)
        np.testing.assert_allclose(p_type, signals.p_type.numpy(), atol=1e-5)


def test_one_run_writes_figures_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON and Markdown hold every graph with its time, ratio, settings and reorder nodes."""
    arguments = ["--widths", "4", "--batches", "1", "--rounds", "2", "--slice", "0.002", "--threads", "1"]
    assert benchmark.main([*arguments, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "graph.json").read_text())
    (row,) = document["rows"]
    assert list(row["graphs"]) == ["fused", "unfused", "static"]
    assert row["graphs"]["static"]["over_static"] == 1
    for figures in row["graphs"].values():
        assert figures["milliseconds"] > 0 and figures["nodes"] > 40 and figures["settings"]["threads"] == 1
    table = (tmp_path / "graph.md").read_text()
    assert table.count("\n| 4 | 1 |") == 3
    assert "python -m benchmarks.model.graph --widths 4" in table


def test_every_form_is_the_same_network() -> None:
    """Forms differ in their nodes alone, so their times can be compared: logits to a millionth of the largest."""
    net = benchmark.random_net(4)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    made = {name: model for name, model in graph_forms.models(net, 1).items() if name != "static"}
    assert list(made) == list(graph_forms.FORMS)
    got = {
        name: benchmark.session(model, benchmark.Settings(1, "all", True)).run(None, {"image": image})
        for name, model in made.items()
    }
    for outputs in got.values():
        for ours, plain in zip(outputs, got["plain"], strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-6 * np.abs(plain).max(), rtol=0)
    assert len({model for model in made.values()}) == len(made)


def test_plain_and_blocked_are_what_export_writes() -> None:
    """The benchmark builds the graph of its own forms itself; of the two that export offers it is export's."""
    net = benchmark.random_net(16)
    for name in ("plain", "blocked"):
        assert graph_forms.models(net, 8)[name] == graph.build(net, blocked=name == "blocked").SerializeToString()


def test_forms_are_told_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a form and batch size; those for one image are not there for eight."""
    arguments = ["--widths", "4", "--rounds", "1", "--slice", "0.001", "--out", str(tmp_path / "forms")]
    assert graph_forms.main(arguments) == 0
    (part,) = json.loads((tmp_path / "forms.json").read_text())["networks"]
    names = {batch: {row["form"] for row in part["rows"] if row["batch"] == batch} for batch in (1, 8)}
    assert names[1] - names[8] == {"batch norm", "grouped 1x1", "filters"}
    assert names[8] == {"plain", "blocked", "picked", "one sum", "channels last", "static", "plain, extended"}
    assert all(row["milliseconds"] > 0 and row["over"]["plain"] > 0 for row in part["rows"])
    assert (tmp_path / "forms.md").read_text().count("\n| 8 |") == 7
