"""Compiled kernels for few rows: an expert, or a whole decode layer, at the speed of memory."""
