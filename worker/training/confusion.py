"""Confusion of a classifier: true and predicted classes, counted on the test examples."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import Plan
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.structure import labels_of, mapped
from fluffle.worker.tasks.task import Task, examples_of
from fluffle.worker.training.building import test_indices
from fluffle.worker.training.local_state import batch_of

#: More classes than this make no picture that one could read.
MOST_CLASSES = 100
_BATCH = 250


def confusion(model: keras.Model, plan: Plan) -> NDArray[np.int64] | None:
    """Counts, shape (classes, classes): row the true class, column the predicted one.

    None where the task is no classification with one class for each example, or has too many.
    """
    task = load_task(plan)
    indices = test_indices(plan, task)
    true = labels_of(examples_of(task, "test").y)
    shape = model.output_shape
    several = isinstance(shape, dict | list) or isinstance(shape[0], tuple)
    if several or batch_of(model) is not None or true is None or true.dtype.kind not in "iu":
        return None
    true = true[indices].astype(np.int64)
    if len(shape) != 2 or not 2 <= shape[1] <= MOST_CLASSES:
        return None
    counts = np.zeros((shape[1], shape[1]), np.int64)
    if true.max(initial=0) >= shape[1]:
        return None
    predicted = _predicted(model, task, indices)
    np.add.at(counts, (true, predicted), 1)
    return counts


def _predicted(model: keras.Model, task: Task, indices: NDArray[np.int32]) -> NDArray[np.int64]:
    x = examples_of(task, "test").x
    outputs = []
    for start in range(0, len(indices), _BATCH):
        part = mapped(partial(np.take, indices=indices[start : start + _BATCH], axis=0), x)
        outputs.append(np.asarray(model(task.preprocess(part), training=False)))
    predicted: NDArray[np.int64] = np.argmax(np.concatenate(outputs), axis=1)
    return predicted
