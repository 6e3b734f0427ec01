"""The exhaustive check of the custody rule: every order of events, on the product's own transition functions."""
