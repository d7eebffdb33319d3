"""A parameter as a linear map, and which leaf of a params tree is which map."""
