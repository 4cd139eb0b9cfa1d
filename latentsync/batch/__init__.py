"""Thin doors to the engine beyond the command line's `run`: many jobs, and one job on many machines."""
