"""Sums that do not depend on their order, and kernels that see the same shapes on every layout."""
