"""ONNX Runtime as on a CPU that has AVX2 but neither AVX-512 nor VNNI: a copy that is told so.

    python -m benchmarks.harness.older_cpu DIR
    PYTHONPATH=DIR python -m benchmarks.model.graph_forms

ONNX Runtime asks the processor what it can do and has no setting for it. In the copy the two tests of that answer, for
AVX-VNNI and for AVX-512, which guards AVX-512's VNNI as well, test no bit, so that neither is found. Everything else of
the processor stays as it is: clock, caches, memory. Only for x86-64 under Linux.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import onnxruntime

# cpuid; test al, 1 << 4 (AVX-VNNI), and soon after it: test r32, 1 << 16 (AVX-512F)
TESTS = re.compile(rb"(\x0f\xa2\xa8)\x10(.{1,96}?\xf7[\xc0-\xc7])\x00\x00\x01\x00", re.DOTALL)


def copy(folder: Path) -> int:
    """A copy of the package `onnxruntime`, without GPUs, in `folder`; how many tests were changed.

    Raises:
        RuntimeError: this build of ONNX Runtime has no such tests.
    """
    source, target = Path(onnxruntime.__file__).parent, folder / "onnxruntime"
    without = shutil.ignore_patterns(
        "*_providers_cuda*", "*_providers_tensorrt*", "transformers", "tools", "__pycache__"
    )
    shutil.copytree(source, target, ignore=without)
    changed = 0
    for library in (target / "capi").glob("onnxruntime_pybind11_state*.so"):
        data, found = TESTS.subn(lambda test: test[1] + bytes(1) + test[2] + bytes(4), library.read_bytes())
        library.write_bytes(data)
        changed += found
    if not changed:
        shutil.rmtree(target)
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} tests for AVX-512 in a way that is not known here")
    return changed


if __name__ == "__main__":
    print(f"{copy(Path(sys.argv[1]))} tests changed; use it by PYTHONPATH={sys.argv[1]}")
