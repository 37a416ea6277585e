"""The repository for Triton's Python backend, and the program that runs in it."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.harness.report import bundled_model
from export import triton_python
from export.triton_python import ConversionError, convert
from tests.server.engines.triton.real_triton import publish_tiny
from tests.server.tiny import SIZE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 and 2 of the tiny model, exported."""
    for version in (1, 2):
        publish_tiny(tmp_path / "exported", version)
    return tmp_path / "exported"


def config_of(repository: Path) -> Any:
    """config.pbtxt as Triton's own protobuf reads it."""
    text = (repository / "awnet/config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_bundled_configuration_is_one_that_the_stock_image_takes() -> None:
    """Triton's own message reads every field; the backend is onnxruntime and nothing that stalls Triton is set."""
    config = config_of(ROOT / "model_repository")
    assert config.backend == "onnxruntime" and config.max_batch_size >= 32
    assert [t.name for t in config.input] == ["image"]
    assert [t.name for t in config.output] == ["logits", "p_type", "omega"]
    assert not config.dynamic_batching.HasField("default_queue_policy")
    versions = [folder.name for folder in bundled_model().parent.iterdir() if folder.name.isdigit()]
    parameters = {name for name in config.parameters if name.startswith(("contract.", "sha256."))}
    assert parameters == {f"{what}.{version}" for what in ("contract", "sha256") for version in versions}


def test_files_and_configuration_are_the_same_but_for_the_backend(repository: Path, tmp_path: Path) -> None:
    """Same tensors, batching, parameters and models; a program beside each model."""
    assert convert(repository, tmp_path / "out") == [1, 2]
    before, after = config_of(repository), config_of(tmp_path / "out")
    assert (before.backend, after.backend) == ("onnxruntime", "python")
    after.backend = before.backend
    assert after == before
    for version in ("1", "2"):
        folder = tmp_path / "out/awnet" / version
        assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.py"]
        assert (folder / "model.onnx").read_bytes() == (repository / "awnet" / version / "model.onnx").read_bytes()


def test_a_second_run_adds_what_is_new_and_touches_nothing_else(repository: Path, tmp_path: Path) -> None:
    """A Triton that watches the folder reloads no model for nothing."""
    out = tmp_path / "out"
    convert(repository, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    convert(repository, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    publish_tiny(repository, 3)
    assert convert(repository, out) == [1, 2, 3]
    assert {path for path, at in times.items() if path.stat().st_mtime_ns != at} == {out / "awnet/config.pbtxt"}


def test_what_a_kill_left_behind_is_swept_up(repository: Path, tmp_path: Path) -> None:
    """A staging folder is never taken for a version, and does not stay."""
    (tmp_path / "out/awnet/.partial-2").mkdir(parents=True)
    convert(repository, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out/awnet").iterdir()) == ["1", "2", "config.pbtxt"]


def spoil_model(repository: Path, out: Path) -> None:
    (repository / "awnet/1/model.onnx").write_bytes(b"other")


def spoil_backend(repository: Path, out: Path) -> None:
    config = repository / "awnet/config.pbtxt"
    config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))


def forget_config(repository: Path, out: Path) -> None:
    (repository / "awnet/config.pbtxt").unlink()


def forget_version(repository: Path, out: Path) -> None:
    shutil.rmtree(repository / "awnet/2")


def spoil_copy(repository: Path, out: Path) -> None:
    (out / "awnet/1/model.onnx").write_bytes(b"other")


@pytest.mark.parametrize("spoil", [spoil_model, spoil_backend, forget_config, forget_version, spoil_copy])
def test_a_repository_that_does_not_fit_changes_nothing(repository: Path, tmp_path: Path, spoil: Any) -> None:
    """A wrong hash, another backend, no configuration, a version that went, a copy that differs: refused, by name."""
    out = tmp_path / "out"
    convert(repository, out)
    publish_tiny(repository, 3)
    spoil(repository, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConversionError):
        convert(repository, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_command_line_says_what_it_did(repository: Path, tmp_path: Path, capsys: Any) -> None:
    """0 and the versions, or 1 and the reason."""
    arguments = ["--repository", str(repository), "--out", str(tmp_path / "out")]
    assert triton_python.main(arguments) == 0
    assert "version 1, 2" in capsys.readouterr().out
    assert triton_python.main([*arguments, "--name", "../other"]) == 2
    assert "no model name" in capsys.readouterr().err
    assert triton_python.main(["--repository", str(repository), "--out", str(repository)]) == 2


@pytest.mark.process
def test_it_runs_where_only_the_standard_library_is() -> None:
    """Triton's own environment has neither torch nor onnx."""
    code = "import sys; sys.modules.update(numpy=None, onnx=None, torch=None); import export.triton_python"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)


# The program, with a stand-in for the module that Triton gives it.


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class Request:
    def __init__(self, images: np.ndarray[Any, Any], *wanted: str) -> None:
        self.tensor = Tensor("image", images)
        self.wanted = wanted or ("logits", "p_type", "omega")

    def requested_output_names(self) -> tuple[str, ...]:
        return self.wanted


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.tensors = {tensor.name: tensor.as_numpy() for tensor in output_tensors}
        self.error = error


@pytest.fixture
def program(repository: Path, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    """model.py of version 2, as Triton imports it; (module, arguments of initialize)."""
    convert(repository, tmp_path / "out")
    backend = types.ModuleType("triton_python_backend_utils")
    backend.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=str,
        Logger=types.SimpleNamespace(log_error=logging.error),
        get_input_tensor_by_name=lambda request, name: request.tensor,
    )
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("triton_model", tmp_path / "out/awnet/2/model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json_format.MessageToJson(config_of(tmp_path / "out"), preserving_proto_field_name=True)
    arguments = {"model_config": config, "model_repository": str(tmp_path / "out/awnet"), "model_version": "2"}
    yield module, arguments


def under_numpy_1(module: Any, monkeypatch: Any) -> None:
    """The module as it is inside Triton: the tests' own numpy is newer."""
    numpy = types.SimpleNamespace(**{**vars(np), "__version__": "1.26.4"})
    monkeypatch.setattr(module, "np", numpy)


def test_each_request_gets_its_own_rows(program: Any, monkeypatch: Any) -> None:
    """Gathered requests run as one batch and come apart again, with the outputs that each asked for."""
    module, arguments = program
    under_numpy_1(module, monkeypatch)
    model = module.TritonPythonModel()
    model.initialize(arguments)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, SIZE, SIZE), np.uint8)
    requests = [Request(images[:1]), Request(images[1:4], "p_type"), Request(images[4:])]
    answers = model.execute(requests)
    session = ort.InferenceSession(f"{arguments['model_repository']}/2/model.onnx", providers=["CPUExecutionProvider"])
    expected = dict(zip(("logits", "p_type", "omega"), session.run(None, {"image": images}), strict=True))
    assert [sorted(answer.tensors) for answer in answers] == [
        ["logits", "omega", "p_type"],
        ["p_type"],
        ["logits", "omega", "p_type"],
    ]
    for answer, rows in zip(answers, (slice(0, 1), slice(1, 4), slice(4, 6)), strict=True):
        assert answer.error is None
        for name, array in answer.tensors.items():
            np.testing.assert_allclose(array, expected[name][rows], atol=1e-5)


def test_a_failure_is_an_error_answer_to_every_request_of_the_batch(program: Any, monkeypatch: Any) -> None:
    """The process lives on; the answer says nothing about its insides."""
    module, arguments = program
    under_numpy_1(module, monkeypatch)
    model = module.TritonPythonModel()
    model.initialize(arguments)
    bad = [Request(np.zeros((1, 3, SIZE, SIZE), np.uint8)), Request(np.zeros((1, 3, 5, 5), np.uint8))]
    assert [answer.error for answer in model.execute(bad)] == ["the model failed on this request"] * 2
    good = model.execute([Request(np.zeros((1, 3, SIZE, SIZE), np.uint8))])
    assert good[0].error is None and good[0].tensors["logits"].shape == (1, 10)


def test_numpy_2_is_refused_at_the_start(program: Any) -> None:
    """Under it this backend would answer with empty tensors and report ready."""
    module, arguments = program
    assert int(np.__version__.split(".")[0]) >= 2  # the tests' own
    with pytest.raises(RuntimeError, match="numpy<2"):
        module.TritonPythonModel().initialize(arguments)


def test_a_file_that_is_not_the_promised_one_is_refused(program: Any, monkeypatch: Any) -> None:
    """The hash that a server reads from the configuration is that of the file that runs."""
    module, arguments = program
    under_numpy_1(module, monkeypatch)
    file = Path(arguments["model_repository"], "2/model.onnx")
    file.write_bytes(Path(arguments["model_repository"], "1/model.onnx").read_bytes())
    with pytest.raises(RuntimeError, match="SHA-256"):
        module.TritonPythonModel().initialize(arguments)
