"""Decoding on an NVIDIA card: a whole step as one CUDA graph where all experts are resident, else layer by layer."""
