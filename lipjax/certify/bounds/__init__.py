"""Engines: from a graph and what is known of its nodes to a bound."""
