"""Networks: AW-Net, the same standing still, static baselines, one interface to all, and their checkpoints."""
