"""k-means over the tokens of each head."""
