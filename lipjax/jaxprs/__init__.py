"""Jaxprs of any JAX from 0.10 on: the one place that walks them."""
