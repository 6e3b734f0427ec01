"""Rounds without the interpreter: compiled code asks peers, serves them, and takes their answers."""
