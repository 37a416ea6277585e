"""What torch does wrongly or slowly on some CPUs, and what is done instead.

Everything here is measured, with torch 2.14.1 (oneDNN 3.12.0); tests/training/test_hardware.py runs it again.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

VECTOR = 16  # float32 values in the longest register of an x86-64 CPU: AVX-512; with AVX2 it is 8


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that is safe to train with few channels and filters of one pixel that leave out pixels.

    In channels-last layout and float32 oneDNN's gradient of such filters (1x1, stride 2) writes past the end of its
    buffer where there are fewer input channels than a register holds: on AVX2 with 2 to 7 channels a training dies
    within 30 steps ("corrupted size vs. prev_size", or a segmentation fault), on AVX-512 with 2 to 8 channels and
    images of 64 pixels. Forward, the gradient of the image, all other filters (3 channels in the stem among them) and
    NCHW are harmless; but NCHW is slower at every width. So here the pixels are left out first, and stride 1 goes over
    what is left: the same sums, bit for bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.device.type == "cpu" and self.in_channels < VECTOR
        if narrow and self.weight.requires_grad and self.kernel_size == (1, 1) and self.stride != (1, 1):
            down, across = self.stride
            return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)
        return super().forward(x)
