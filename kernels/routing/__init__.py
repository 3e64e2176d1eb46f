"""All keys past the query centroids: masses, errors, and stand-ins that weigh what was seen."""
