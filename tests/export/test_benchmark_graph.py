"""The graph benchmark compares what it says it compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import graph as benchmark


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
    assert "python -m benchmarks.graph --widths 4" in table
