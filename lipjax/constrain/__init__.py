"""Norms kept in a set: spectral normalization, projections, clipping."""
