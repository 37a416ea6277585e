"""What a model file is worth, judged by the file alone: ONNX Runtime, numpy and images."""
