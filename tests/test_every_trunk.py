"""Whatever `training` can make goes the whole way: a checkpoint, its export, an answer of the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.onnx import export_checkpoint  # noqa: E402
from tests.server.tiny import Running, encoded, noise  # noqa: E402
from tests.tiny_awnet import write_checkpoint  # noqa: E402
from training.networks.awnet import AWNetConfig  # noqa: E402
from training.networks.checkpoint import load  # noqa: E402

pytestmark = pytest.mark.process

SIZES = [
    pytest.param(AWNetConfig(depth=34, width=4), id="resnet34"),
    pytest.param(AWNetConfig(depth=50, width=4), id="resnet50"),
    pytest.param(AWNetConfig(depth=18, width=4, num_classes=200, image_size=64), id="tiny-imagenet"),
]


@pytest.mark.parametrize("config", SIZES)
def test_checkpoint_export_and_answer(config: AWNetConfig, tmp_path: Path) -> None:
    """The server's class, its probability, the score and omega of every block are those that PyTorch computes."""
    ckpt = write_checkpoint(tmp_path / "best.pt", config)
    export_checkpoint(ckpt, tmp_path / "models")
    image = noise(config.image_size, config.image_size, seed=3)
    served = Running(tmp_path / "models")
    try:
        served.wait_ready()
        reply = served.http.post("/predict?signals=all", files={"image": ("a.png", encoded(image))})
    finally:
        served.stop()
    assert reply.status_code == 200, reply.text
    answer = reply.json()["results"][0]

    net = load(ckpt).awnet
    x = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        signals = net.detect(x)
        likely = net.classify(x, signals).softmax(1)[0]
    assert answer["predictions"][0]["class_id"] == int(likely.argmax())
    assert answer["predictions"][0]["probability"] == pytest.approx(float(likely.max()), abs=1e-4)
    assert answer["adversarial"]["score"] == pytest.approx(float(signals.p_type[0, 0]), abs=1e-4)
    convolutions = answer["signals"]["convolutions"]
    assert [len(c["values"]) for c in convolutions] == [o.shape[1] for o in signals.omega]
    for convolution, omega in zip(convolutions, signals.omega, strict=True):
        np.testing.assert_allclose(convolution["values"], omega[0], rtol=1e-3, atol=1e-4)
