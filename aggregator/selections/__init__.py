"""Selections: who trains next. Each opens with its paper and its equation."""
