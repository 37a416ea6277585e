"""Training works, and is not needlessly slow, on every x86-64 CPU. oneDNN is told to be older than it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.model import training as benchmark
from training import evaluate, train
from training.core.hardware import BFLOAT16, Conv2d, cpu_features, has_bfloat16, multiplies_bfloat16
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import ARCHITECTURES, StaticConfig, build_static
from training.reproduction import sweep

ROOT = Path(__file__).parents[3]

NARROW = """
import torch
from torch import nn
from training.networks.awnet import ResNet18Extractor

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(ResNet18Extractor(4), nn.Linear(32, 10)).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.SGD(net.parameters(), 0.01)
for _ in range(40):
    x = torch.rand(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), torch.randint(0, 10, (32,))).backward()
    optimizer.step()
print("trained")
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_narrow_network_trains_on_avx2() -> None:
    """Width 4, float32, channels last, 40 steps; with `nn.Conv2d` the process dies in the first few."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr[-3000:]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("size", [7, 8])
def test_the_safe_convolution_is_the_convolution(size: int, layout: torch.memory_format) -> None:
    """Same values and same gradients of image, filters and bias, for even and odd sizes."""
    plain, safe = nn.Conv2d(5, 6, 1, 2), Conv2d(5, 6, 1, 2)
    safe.load_state_dict(plain.state_dict())
    x = torch.rand(3, 5, size, size)
    gradients = []
    for convolution, memory in ((plain, torch.contiguous_format), (safe, layout)):
        images = x.contiguous(memory_format=memory).requires_grad_()
        out = convolution.to(memory_format=memory)(images)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), [images, *convolution.parameters()])])
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("arch", ["awnet", *sorted(ARCHITECTURES)])
def test_no_network_has_an_unsafe_convolution(arch: str) -> None:
    """Whatever filters of one pixel leave out pixels are of the safe kind."""
    with torch.device("meta"):
        net: nn.Module = AWNet(AWNetConfig(depth=50)) if arch == "awnet" else build_static(StaticConfig(arch))
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            assert isinstance(layer, Conv2d), name


@pytest.mark.parametrize(
    ("features", "limit", "expected"),
    [
        ({"avx2", "avx512f", "avx512_bf16"}, "", True),
        ({"avx512_bf16", "amx_bf16", "amx_tile"}, "ALL", True),
        ({"avx512_bf16"}, "avx512_core_bf16", True),
        ({"avx512_bf16"}, "AVX2", False),
        ({"avx512_bf16"}, "avx512_core", False),
        ({"avx2", "avx512f", "avx512_vnni"}, "", False),
        ({"avx2"}, "", False),
        (set(), "", False),
    ],
)
def test_bfloat16_is_for_cpus_that_multiply_it(features: set[str], limit: str, expected: bool) -> None:
    """By the CPU's own word, and within what oneDNN may use."""
    assert has_bfloat16(features, limit) is expected


def test_an_older_torch_leaves_the_question_to_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/cpuinfo calls the same features the same; without it nothing is known, and float32 is always right."""
    told = cpu_features()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_features(cpuinfo) == {"fpu", "avx2", "avx512_bf16"}
    assert cpu_features(tmp_path / "none") == set()
    assert cpu_features() & BFLOAT16 == told & BFLOAT16


def test_on_a_gpu_bfloat16_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU beside it is not asked."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert multiplies_bfloat16(torch.device("cuda")) and not multiplies_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line_from_every_command(
    name: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with the option and what it was given, before anything is read or written."""
    (tmp_path / "r.toml").write_text("")
    out, data = str(tmp_path / "out"), ["--data-dir", str(tmp_path)]
    commands: dict[str, Callable[[], int]] = {
        "train": lambda: train.main(["--recipe", str(tmp_path / "r.toml"), *data, "--out", out, "--device", name]),
        "evaluate": lambda: refused(["--ckpt", str(tiny_checkpoint), *data, "--out", out, "--device", name]),
        "sweep": lambda: sweep.main([*data, "--runs", out, "--device", name]),
    }
    for command, call in commands.items():
        assert call() == 2, command
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: --device {name}: ") and ("GPU" in said or "cuda:NUMBER" in said), command
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--device", name])
    assert ended.value.code == 2 and f"error: --device {name}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def refused(arguments: list[str]) -> int:
    """The status that `training.evaluate` ends with."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code
