"""One pass of all keys past the query centroids: masses, errors, and stand-ins by what was seen."""
