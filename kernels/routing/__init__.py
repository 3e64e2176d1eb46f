"""Routing: what query centroids see of each key cluster, and what stands for it."""
