"""The commands. Importing this package imports nothing; each command imports what it needs when it runs."""
