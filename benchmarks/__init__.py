"""Measurements against peers, interleaved in one run: ``python -m benchmarks [--quick] [NAME ...]``."""
