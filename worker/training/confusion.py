"""What a classifier takes for what: counted on the test examples that evaluations use."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import Plan
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.task import Task
from fluffle.worker.training.trainer import test_indices

#: More classes than this make no picture that one could read.
MOST_CLASSES = 100
_BATCH = 250


def confusion(model: keras.Model, plan: Plan) -> NDArray[np.int64] | None:
    """Counts, shape (classes, classes): row the true class, column the predicted one.

    None where the task is no classification with one class for each example, or has too many.
    """
    task = load_task(plan)
    indices = test_indices(plan, task)
    true = _classes(np.asarray(task.test().y)[indices])
    shape = model.output_shape
    if true is None or len(shape) != 2 or not 2 <= shape[1] <= MOST_CLASSES:
        return None
    counts = np.zeros((shape[1], shape[1]), np.int64)
    if true.max(initial=0) >= shape[1]:
        return None
    predicted = _predicted(model, task, indices)
    np.add.at(counts, (true, predicted), 1)
    return counts


def _classes(y: NDArray[Any]) -> NDArray[np.int64] | None:
    """The class of each example, from labels or from one-hot rows."""
    if y.ndim == 1 and y.dtype.kind in "iu":
        return y.astype(np.int64)
    if y.ndim != 2 or y.shape[1] < 2:
        return None
    one_hot = np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1)
    return np.argmax(y, axis=1) if one_hot else None


def _predicted(model: keras.Model, task: Task, indices: NDArray[np.int32]) -> NDArray[np.int64]:
    x = task.test().x
    batches = [indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH)]
    outputs = [np.asarray(model(task.preprocess(x[b]), training=False)) for b in batches]
    predicted: NDArray[np.int64] = np.argmax(np.concatenate(outputs), axis=1)
    return predicted
