"""The AW-Net server: one ONNX file behind HTTP, which class it is and whether the picture was tampered with."""
