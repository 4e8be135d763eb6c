"""A task's examples as tensors, and batches of them, gathered within the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from fluffle.schemas import UserError
from fluffle.worker.tasks.structure import mapped, named_leaves
from fluffle.worker.tasks.task import Task, examples_of
from fluffle.worker.tasks.weighting import weights_of


class Batches:
    """The examples of ``dataset()`` or ``test()``, which all trainers of a process share."""

    def __init__(self, task: Task, part: str) -> None:
        """Raises: UserError where they are no tensors."""
        examples = examples_of(task, part)
        self._x = mapped(_tensor(part, examples.x), examples.x)
        self._y = mapped(_tensor(part, examples.y), examples.y)
        weights = weights_of(task, examples) if part == "dataset" else None
        self._weights = None if weights is None else tf.constant(weights)

    def take(self, indices: Any) -> tuple[Any, ...]:
        """(x, y) of these examples, and how much each counts, where they differ in that."""
        parts: tuple[Any, ...] = (self._x, self._y)
        if self._weights is not None:
            parts = (*parts, self._weights)
        return tuple(mapped(lambda tensor: tf.gather(tensor, indices), part) for part in parts)

    def not_finite(self, indices: Any) -> int | None:
        """The first of these examples whose inputs have NaN or infinity in them."""
        for tensor in tf.nest.flatten(self._x):
            if tensor.dtype.is_floating:
                taken = tf.reshape(tf.gather(tensor, indices), [len(indices), -1])
                wrong = np.asarray(tf.reduce_any(~tf.math.is_finite(taken), axis=1))
                if wrong.any():
                    return int(np.asarray(indices)[wrong.argmax()])
        return None

    def first(self, count: int) -> tuple[Any, Any]:
        """(x, y) of the first examples."""
        x, y = (mapped(lambda tensor: tensor[:count], part) for part in (self._x, self._y))
        return x, y


def _tensor(part: str, of: Any) -> Any:
    """Makes a tensor of an array. Raises: UserError."""
    names = {id(array): name for name, array in named_leaves(of, "")}

    def make(array: Any) -> Any:
        try:
            return tf.constant(array)
        except (ValueError, TypeError) as error:
            what = names.get(id(array), "")
            kind = getattr(np.asarray(array, dtype=object), "dtype", "")
            raise UserError(
                f"{part}(){what}: these make no tensor of one shape and dtype ({kind}): let all "
                f"examples have one length (keras.utils.pad_sequences), or give a stream: {error}"
            ) from None

    return make
