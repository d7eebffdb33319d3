"""Bounds from below: slopes that were found."""
