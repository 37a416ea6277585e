"""The paper again: its networks trained and judged at a scale, its tables, claims and figures."""
