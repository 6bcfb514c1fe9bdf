"""Grids of cells: what is to do, what is done, and what they came to."""
