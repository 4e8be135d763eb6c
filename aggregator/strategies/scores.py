"""The score of an evaluation: what tells whether it is better than another."""

from __future__ import annotations

from collections.abc import Mapping

#: Before the names of what was measured on validation examples.
VALIDATION = "validation_"


def decisive(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """The metrics by which something is decided, under their plain names."""
    found = {k.removeprefix(VALIDATION): v for k, v in metrics.items() if k.startswith(VALIDATION)}
    return found or metrics


def score_of(metrics: Mapping[str, float]) -> float | None:
    """What is compared, larger being better; None where there is neither accuracy nor loss.

    What was measured on validation examples counts, where there is any.
    """
    metrics = decisive(metrics)
    if "accuracy" in metrics:
        return metrics["accuracy"]
    return -metrics["loss"] if "loss" in metrics else None
