"""Tokens put in the order of their clusters, and back."""
