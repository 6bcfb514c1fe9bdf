"""The studies. Each folder is one task; no task imports another."""
