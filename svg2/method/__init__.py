"""The method as pure tensor functions: clusters, selection, and one sparse call of attention."""
