"""A small random AW-Net as a checkpoint that can be exported: what training makes in hours, made in a second."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.harness.networks import randomised
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.checkpoint import Calibration, pack, save


def write_checkpoint(path: Path, config: AWNetConfig) -> Path:
    """A calibrated network as `best.pt`: random, but with heads and batch norms that all matter. Returns `path`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        net = randomised(AWNet(config))
        with torch.no_grad():
            signals = net.detect(torch.rand(64, 3, config.image_size, config.image_size))
        scores, omega = signals.p_type[:, 0], torch.cat(signals.omega, dim=1)
        edges = [i / 20 for i in range(21)]
        calibration = Calibration(
            images=len(scores),
            thresholds={fpr: float(torch.quantile(scores, 1 - fpr)) for fpr in (0.01, 0.05)},
            histogram_edges=edges,
            histogram_counts=[int(n) for n in torch.histogram(scores, torch.tensor(edges)).hist],
            omega_mean=omega.mean(0),
            omega_std=omega.std(0),
        )
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    document = pack(
        net,
        labels=labels if config.num_classes == len(labels) else [f"class {n}" for n in range(config.num_classes)],
        recipe={"name": "tiny"},
        calibration=calibration,
        provenance={"commit": "0" * 40, "report": "none: random weights"},
    )
    save(path, document)
    return path
