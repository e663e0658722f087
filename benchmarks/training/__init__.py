"""Whole training runs, too long for `python -m benchmarks`."""
