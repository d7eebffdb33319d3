"""Norms of operators and of params trees."""
