"""From results on disk to tables, figures and a page."""
