"""Modules for Flax, each imported by its own name: ``import lipjax`` does not import Flax.

`lipjax.integrations.nnx` and `lipjax.integrations.linen` each have a ``SpectralNorm``;
`lipjax.integrations.plot` draws norms with matplotlib.
"""
