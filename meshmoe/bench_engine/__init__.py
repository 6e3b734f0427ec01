"""Benches of the engine: kernels against memory, the lean decode path against the generic one."""
