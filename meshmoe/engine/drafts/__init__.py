"""Drafts: tokens guessed without the mesh, checked in one pass through it.

A round costs a link's round trip, so decode speed is rounds a token. A node guesses some tokens ahead, with its
resident experts only (`local`) or from the text itself (`lookup`), and reads all of them in one pass through the mesh,
which tells the model's own next token after each. As long as the guesses are those tokens, one pass writes several.

The text never depends on the guesses: see `meshmoe.engine.sampling`. How many tokens to guess is chosen each pass, from
what was measured (`acceptance`, `timing`, `length`).
"""
