"""The AW-Net server: serves one ONNX file, which gives the class of an image and whether it was tampered with."""

from domain import __version__ as __version__
