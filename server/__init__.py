"""The AW-Net server: serves one ONNX file, which gives the class of an image and whether it was tampered with."""

__version__ = "0.1.0"  # as pyproject.toml says; a test holds the two together
