"""Benchmarks through lm-evaluation-harness, which sees a student as its model `tidecache`."""
