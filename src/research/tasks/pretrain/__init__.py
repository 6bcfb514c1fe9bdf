"""The embedded base model's recipe as a task."""
