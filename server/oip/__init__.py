"""The Open Inference Protocol: one core on tensors, a REST and a gRPC front."""
