"""Strategies: how updates become the next version. Each opens with its paper and its equation."""
