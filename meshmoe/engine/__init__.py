"""The engine: one model's forward pass with experts here and elsewhere, and text out of it, on trio."""
