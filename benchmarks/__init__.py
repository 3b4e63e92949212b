"""Benchmarks: every cost as a ratio to its baseline in the same alternating run."""
