"""Bounds of chains: weights with scalar functions between them."""
