"""Measures of a trained model: capability, MAUVE, and the statistics every report shares."""
