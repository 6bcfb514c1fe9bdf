"""Who generates, with which weights, and the proof that they are the right ones."""
