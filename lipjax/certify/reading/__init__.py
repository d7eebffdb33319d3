"""From a function, or its jaxpr, to a graph."""
