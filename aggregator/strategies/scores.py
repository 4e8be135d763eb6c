"""The score of an evaluation: what tells whether it is better than another."""

from __future__ import annotations

from collections.abc import Mapping


def score_of(metrics: Mapping[str, float]) -> float | None:
    """What is compared, larger being better; None where there is neither accuracy nor loss."""
    if "accuracy" in metrics:
        return metrics["accuracy"]
    return -metrics["loss"] if "loss" in metrics else None
