"""Numbers that hold with rounding: intervals, norms, products."""
