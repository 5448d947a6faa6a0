"""Programs and calls for the compiled kernels under sanitizers."""
