"""A checkpoint as a graph: its nodes, its precision, the contract it carries, and proof that it answers as torch."""
