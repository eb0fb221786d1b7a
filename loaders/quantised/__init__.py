"""Weights that several tensors of a file hold together: codes, scales, zero points, put into packed rows."""
