"""Triggers: when the open buffer closes and becomes the next version."""
