"""A cell is one experiment configuration: its identity, its files, its provenance, and how it resumes."""
