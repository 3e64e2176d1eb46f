"""Exact attention over the kept (query cluster, key cluster) blocks."""
