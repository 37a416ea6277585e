"""The Open Inference Protocol: one core on tensors, a REST and a gRPC front."""

import os

# gRPC's core writes a line to standard error for each header that it cannot read, of whoever sends one, past the log
# that drops what nobody reads. It asks for this once, when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
