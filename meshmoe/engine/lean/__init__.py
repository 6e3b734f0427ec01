"""The lean decode path: a token's whole pass through the model in a few compiled calls."""
