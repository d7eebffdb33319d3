"""Whole networks: Lipschitz bounds that are proved, and found ones from below."""
