"""The method on plain tensors: clustering, selection, and one call of sparse attention."""
