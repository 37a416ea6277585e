"""Turn a checkpoint into one ONNX file that names the class and judges the image in a single pass."""
