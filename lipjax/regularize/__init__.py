"""Optax transformations and penalties that pull norms down."""
