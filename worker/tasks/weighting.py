"""Weights of training examples in the loss: a task's own weights, times their class's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.worker.tasks.structure import count_of, labels_of
from fluffle.worker.tasks.task import Examples, Task


def weights_of(task: Task, examples: Examples) -> NDArray[np.float32] | None:
    """Shape (examples,); None where all count the same. Raises: UserError."""
    own, of_class = task.sample_weights(), task.class_weight
    if own is None and of_class is None:
        return None
    total = count_of(examples.y)
    weights = np.ones(total) if own is None else np.asarray(own, np.float64)
    if weights.shape != (total,):
        raise UserError(
            f"sample_weights() gave shape {weights.shape}: one number for each of {total} examples"
        )
    if of_class is not None:
        weights = weights * _by_class(of_class, examples.y)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UserError("sample_weights() or class_weight: a weight is negative or no number")
    return weights.astype(np.float32)


def _by_class(of_class: Any, y: Any) -> NDArray[np.float64]:
    labels = labels_of(y)
    if labels is None:
        raise UserError("class_weight needs one label for each example: here are none")
    known = {int(label): float(weight) for label, weight in dict(of_class).items()}
    classes, places = np.unique(labels, return_inverse=True)
    # As Keras has it: a class that is not named counts 1.
    return np.array([known.get(int(label), 1.0) for label in classes])[places]
