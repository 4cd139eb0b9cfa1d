"""The three networks: one model, one file."""
