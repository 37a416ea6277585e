"""Example pictures, and the programs that make them."""
