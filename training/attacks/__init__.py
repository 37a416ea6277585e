"""Attacks on networks: each a small function `(model, x, y, budget) -> x_adv`, and evasions of a detector (T3)."""
