"""A model file alone can be served in place of a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engines.model_file import ModelFile
from server.errors import ContractError, ManifestError, ModelNotFound
from server.monitoring.detection import Monitor
from server.monitoring.metrics import Metrics
from server.process.parts import make_engine
from server.settings.settings import Settings


def test_a_file_is_the_only_version_of_its_model(repository: Path) -> None:
    """Its bytes and their hash, as a repository gives them."""
    file = ModelFile(repository / "awnet/1/model.onnx", "mine")
    assert file.catalogue() == {"mine": (1,)}
    artifact = file.read("mine", 1)
    assert artifact.data == (repository / "awnet/1/model.onnx").read_bytes()
    assert file.fingerprint() == file.fingerprint()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing, or no model."""
    with pytest.raises(ModelNotFound, match=r"absent\.onnx cannot be read: No such file"):
        ModelFile(tmp_path / "absent.onnx", "awnet").read("awnet", 1)
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ContractError):
        ModelFile(tmp_path / "text.onnx", "awnet").read("awnet", 1)


def test_a_signature_cannot_be_had_of_a_file_alone(repository: Path) -> None:
    """Whoever asks for signatures is not served what has none."""
    metrics = Metrics(Monitor(), 8, ["awnet"], 0)
    settings = Settings(repository=repository / "awnet/1/model.onnx", signing_key=Path("key.pem"))
    with pytest.raises(ManifestError, match="no signature"):
        make_engine(settings, metrics)
