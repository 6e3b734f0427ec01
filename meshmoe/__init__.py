"""meshmoe: one Mixture-of-Experts model served by a leaderless mesh of unequal edge boxes."""

__version__ = "0.1.0"
