"""Benchmarks: operations against dense attention, whole transformers, tuning and versions."""
