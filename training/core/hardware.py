"""Which devices there are, and workarounds for operations that torch computes wrongly or slowly on some CPUs.

Everything here is measured, with torch 2.14.1 (oneDNN 3.12.0); tests/training/core/test_hardware.py runs it again.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What /proc/cpuinfo and torch call the instructions that multiply bfloat16, and the values of ONEDNN_MAX_CPU_ISA, by
# which oneDNN leaves out what a CPU has, that leave them out. (Those of AVX2_VNNI_2 only convert.)
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
LIMITED = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})

VECTOR = 16  # float32 values in the longest register of an x86-64 CPU: AVX-512; with AVX2 it is 8


class DeviceError(ValueError):
    """A device that torch cannot compute on here; the message names it and says what there is."""


def device_of(name: str) -> torch.device:
    """What --device names: the CPU or a GPU of this machine; DeviceError where there is none of that name."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device {name}: no such device; cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: no such device; cpu, cuda or cuda:NUMBER")
    if device.type == "cuda":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= gpus:
            raise DeviceError(f"--device {name}: torch finds {gpus or 'no'} GPU{'s' * (gpus > 1)} here")
    return device


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that is safe to train with few channels and filters of one pixel that leave out pixels.

    In channels-last layout and float32 oneDNN's gradient of such filters (1x1, stride 2) writes past the end of its
    buffer where there are fewer input channels than a register holds: on AVX2 with 2 to 7 channels a training dies
    within 30 steps ("corrupted size vs. prev_size", or a segmentation fault), on AVX-512 with 2 to 8 channels and
    images of 64 pixels. Forward, the gradient of the image, all other filters (3 channels in the stem among them) and
    NCHW are harmless; but NCHW is slower at every width. So here the pixels are left out first, and stride 1 goes over
    what is left: the same sums, bit for bit in batches of 16 images and more, in another order in some smaller ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.device.type == "cpu" and self.in_channels < VECTOR
        if narrow and self.weight.requires_grad and self.kernel_size == (1, 1) and self.stride != (1, 1):
            down, across = self.stride
            return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)
        return super().forward(x)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is worth its rounding on `device`: always on a GPU, on a CPU where it has instructions for it.

    Others compute it by conversion: a matrix product takes 80 times as long as in float32 on AVX2, where torch does it
    value by value, and a quarter more on AVX-512.
    """
    if device.type != "cpu":
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return has_bfloat16(cpu_features(), limit)


def has_bfloat16(features: Collection[str], limit: str = "") -> bool:
    """The same of a CPU with these features, under this limit of oneDNN's ('' for none)."""
    return not BFLOAT16.isdisjoint(features) and limit.upper() not in LIMITED


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets of this CPU as torch reports them, or where an older torch does not, Linux; else none."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()
