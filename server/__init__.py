"""The AW-Net server: one ONNX file behind HTTP, which class it is and whether the image was tampered with."""

__version__ = "0.1.0"  # as pyproject.toml says; a test holds the two together
