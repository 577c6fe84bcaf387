"""Benchmarks: what they print was measured, with the machine and its fsync latency beside it."""
