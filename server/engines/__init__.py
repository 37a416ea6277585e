"""Inference engines: ONNX Runtime in this process, with its queue, and NVIDIA Triton in `triton`."""
