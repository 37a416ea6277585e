"""Whether an exported ONNX file answers an attack as the network in torch does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import to_pixels
from ..networks.network import ADVERSARIAL, DetectingNetwork


def agreement(model: Path, net: DetectingNetwork, images: Tensor, thresholds: Sequence[float]) -> dict[str, Any]:
    """ONNX Runtime (CPU) against the prepared network, on uint8 images [N,3,H,W].

    The largest difference of a score and of a logit (logits relative to the largest one), and how many images get
    another class, or another verdict at any of the thresholds.

    Raises:
        ValueError: the file cannot be run, or is no exported network of this image size.
    """
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        logits_of = f"logits_{net.answering}" if net.answering else "logits"  # a model file has an output for each mode
        found = [session.run([logits_of, "p_type"], {"image": x.numpy()}) for x in images.split(100)]
    except Exception as error:  # ONNX Runtime raises a dozen types that share no base
        raise ValueError(f"{model.name} does not run as an exported network: {error}") from error
    logits, p_type = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
    device = next(net.parameters()).device
    own_logits, own_scores = [], []
    with torch.inference_mode():
        for x in images.split(100):
            pixels = to_pixels(x).to(device)
            signals = net.detect(pixels)
            own_logits.append(net.classify(pixels, signals).float().cpu())
            own_scores.append(signals.p_type[:, ADVERSARIAL].float().cpu())
    expected, score, own_score = torch.cat(own_logits), p_type[:, ADVERSARIAL], torch.cat(own_scores)
    verdicts = [(score > t) != (own_score > t) for t in thresholds]
    return {
        "images": len(images),
        "score_difference": float((score - own_score).abs().max()),
        "logit_difference": float((logits - expected).abs().max() / expected.abs().max()),
        "other_class": int((logits.argmax(1) != expected.argmax(1)).sum()),
        "other_verdict": int(torch.stack(verdicts).any(0).sum()),
    }
