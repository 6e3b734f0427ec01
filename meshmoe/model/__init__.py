"""Checkpoints: which tensors are experts, their sizes and digests, selective loading, and a partial node's store."""
