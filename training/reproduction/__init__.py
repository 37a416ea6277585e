"""Reproduction of the paper: trains and evaluates its networks at a scale, and makes its tables, claims and figures."""
