"""The operator that each parameter is, read off the trace of a function."""
