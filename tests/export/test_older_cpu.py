"""The copy of ONNX Runtime for a CPU without AVX-512 computes in smaller blocks, and the same."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import older_cpu

# One convolution of 8 channels: a block of its own where blocks are of 8, taken as it comes where they are of 16.
LAYOUT = """
import sys, numpy as np, onnx, onnxruntime as ort
from onnx import helper, numpy_helper
filters = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype("f4"), "w")
maps = [helper.make_tensor_value_info(name, 1, [1, 8, 8, 8]) for name in "xy"]
conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
made = helper.make_model(
    helper.make_graph([conv], "g", maps[:1], maps[1:], [filters]),
    opset_imports=[helper.make_opsetid("", 20)],
    ir_version=10,
)
options = ort.SessionOptions()
options.log_severity_level, options.optimized_model_filepath = 3, sys.argv[1]
session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
print(sum(node.op_type.startswith("Reorder") for node in onnx.load(sys.argv[1]).graph.node))
print(*session.run(None, {"x": np.random.default_rng(1).normal(size=(1, 8, 8, 8)).astype("f4")})[0].ravel())
"""


def ran(folder: Path, copied: bool) -> tuple[int, list[float]]:
    """Layout reorders, and the numbers."""
    environment = os.environ | ({"PYTHONPATH": str(folder)} if copied else {})
    arguments = [sys.executable, "-c", LAYOUT, str(folder / "optimised.onnx")]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    count, numbers = ended.stdout.splitlines()
    return int(count), [float(x) for x in numbers.split()]


@pytest.mark.process
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the copy is made for x86-64 alone")
def test_the_copy_finds_no_avx_512(tmp_path: Path) -> None:
    """Where the original takes 8 channels as less than a block, the copy reorders them, and the answers agree."""
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX-512")
    assert older_cpu.copy(tmp_path) > 0
    (ours, expected), (copied, numbers) = ran(tmp_path, False), ran(tmp_path, True)
    assert (ours, copied) == (1, 2)
    assert numbers == pytest.approx(expected, abs=1e-5)


def test_a_build_without_these_tests_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure said to be of an older CPU must not be of this one."""
    (tmp_path / "a/capi").mkdir(parents=True)
    (tmp_path / "a/__init__.py").touch()
    (tmp_path / "a/capi/onnxruntime_pybind11_state.so").write_bytes(b"\x0f\xa2 nothing")
    monkeypatch.setattr(older_cpu.onnxruntime, "__file__", str(tmp_path / "a/__init__.py"))
    with pytest.raises(RuntimeError, match="not known here"):
        older_cpu.copy(tmp_path / "b")
    assert not (tmp_path / "b/onnxruntime").exists()
