"""Benchmarks: ops against dense attention on a CPU and on a GPU, and whole transformers."""
