"""Benchmarks: each compares with a known baseline, interleaved in the same run."""
