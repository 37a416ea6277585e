"""Nodes and constants of an ONNX graph that is written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

Array = npt.NDArray[Any]


class GraphError(ValueError):
    """The network has a part that the inference graph cannot express."""


class Writer:
    """Nodes and constants of a graph under construction; every method returns the name of what it made.

    Constants are written in `dtype`, float32 for a model and float64 where a test wants exactness. With `half_weights`
    filters and matrices that float16 holds without loss are written in it, with a Cast that a runtime folds at load.
    """

    def __init__(self, dtype: torch.dtype, half_weights: bool = False) -> None:
        self.half_weights = half_weights
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.value_info: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        return list(self._constants.values())

    def constant(self, name: str, value: Tensor | Array | list[int] | float) -> str:
        """A constant: integers as int64, everything else in the graph's dtype. The same one again is no second one."""
        array = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        return self._store(name, array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else self.dtype))

    def floats(self, name: str, value: Array) -> str:
        """A constant in float32, whatever the graph's dtype."""
        return self._store(name, value.astype(np.float32))

    def weights(self, name: str, value: Tensor) -> str:
        """Filters or a matrix of the network, as `constant` or in float16."""
        if not self.half_weights or not exact_in_half(value):
            return self.constant(name, value)
        stored = f"{name}.half"
        if stored not in self._constants:
            self.node("Cast", stored, out=name, to=self.type)
        self._store(stored, value.detach().cpu().numpy().astype(np.float16))
        return name

    def _store(self, name: str, array: Array) -> str:
        made = numpy_helper.from_array(array, name)
        if self._constants.setdefault(name, made) != made:
            raise GraphError(f"two constants are called {name}")
        return name

    def node(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        """A node with one output, called `out`."""
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def shaped(self, x: str, channels: int, size: int) -> None:
        """Tell runtimes that x is [N,channels,size,size], N that of the image: they infer no N through a Resize."""
        self.value_info.append(helper.make_tensor_value_info(x, self.type, ["N", channels, size, size]))

    def split(self, x: str, lengths: list[int], names: list[str]) -> list[str]:
        """x [N, sum of lengths] cut along axis 1."""
        parts = self.constant(f"{x}.lengths", lengths)
        self.nodes.append(helper.make_node("Split", [x, parts], names, name=f"{x}.split", axis=1))
        return names

    def conv(
        self,
        x: str,
        conv: nn.Conv2d,
        out: str,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        filters: str | None = None,
    ) -> str:
        """A convolution; scale and shift [c_out] go into its filters, a constant called `filters`, and its bias.

        Where weights are in float16 they stand beside it instead, so that filters keep their exact values; runtimes
        fold both into them at load.
        """
        if self.half_weights and scale is not None and shift is not None:
            y = self.conv(x, conv, f"{out}.plain")
            factor, summand = (
                self.constant(f"{out}.{kind}", value[None, :, None, None])
                for kind, value in (("scale", scale), ("shift", shift))
            )
            return self.node("Add", self.node("Mul", y, factor, out=f"{out}.scaled"), summand, out=out)
        weight = conv.weight if scale is None else conv.weight * scale[:, None, None, None]
        inputs = [x, self.weights(filters or f"{out}.weight", weight)]
        if shift is not None:
            inputs.append(self.constant(f"{out}.bias", shift))
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.bias is not None:
            raise GraphError(f"{out}: only convolutions without bias, padded by a number of zeros, can be exported")
        pad_y, pad_x = conv.padding
        return self.node(
            "Conv",
            *inputs,
            out=out,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[pad_y, pad_x, pad_y, pad_x],
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def linear(self, x: str, weight: Tensor, bias: Tensor, out: str, constants: str | None = None) -> str:
        """x [N, d], weight [k, d], bias [k] -> [N, k]; `constants` is what both are called, `out` where None."""
        at = constants or out
        names = [self.weights(f"{at}.weight", weight), self.constant(f"{at}.bias", bias)]
        return self.node("Gemm", x, *names, out=out, transB=1)

    def pool(self, x: str, out: str) -> str:
        """Global average: [N,C,H,W] -> [N,C]."""
        return self.node("Flatten", self.node("GlobalAveragePool", x, out=f"{out}.map"), out=out, axis=1)


def exact_in_half(value: Tensor) -> bool:
    """Whether float16 holds every element as it is."""
    return bool(torch.equal(value.half().to(value.dtype), value))
