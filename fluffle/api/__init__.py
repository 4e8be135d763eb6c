"""Fluffle from Python: runs and sweeps as calls, what came of them as objects and tables."""
