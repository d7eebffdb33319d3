"""The range of slopes of a scalar function, such as an activation."""
