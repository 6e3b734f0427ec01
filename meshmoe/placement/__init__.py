"""Who should hold what, and which holder serves a call: pure functions."""
