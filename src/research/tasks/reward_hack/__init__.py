"""Reward hacking: an environment with real loopholes, and arms that constrain the gradient."""
