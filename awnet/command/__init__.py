"""The commands of `awnet` that are not programs of another package."""
