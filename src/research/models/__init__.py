"""Base models and adapters: load, attach, merge, and the embedded model `micro`."""
