"""An oracle for client-side algorithms: softmax regression on digits with NumPy, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import Plan
from fluffle.worker.tasks.task import Examples
from fluffle.worker.training.seeds import Purpose, Streams

Floats = NDArray[np.float64]
#: Weights and biases.
Point = list[Floats]


def gradient(point: Point, data: Examples, chosen: NDArray[Any]) -> Point:
    """Of the mean cross-entropy of softmax(x w + b) over the chosen examples."""
    w, b = point
    x, y = data.x[chosen].reshape(len(chosen), -1) / 16, data.y[chosen]
    logits = x @ w + b
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return [x.T @ p / len(y), p.sum(axis=0) / len(y)]


def steps_of(
    plan: Plan,
    client: str,
    turn: int,
    epochs: int,
    indices: NDArray[np.int32],
    version: int = 0,
    purpose: Purpose = "order",
) -> list[NDArray[np.int32]]:
    """The examples of each local step: the trainer's order, which is TensorFlow's shuffle."""
    import tensorflow as tf

    seed, steps = Streams(plan.seed, client, turn, version).seeds(purpose, 1)[0], []
    for epoch in range(epochs):
        folded = tf.random.experimental.stateless_fold_in(tf.constant(seed), epoch)
        order = tf.random.experimental.stateless_shuffle(indices, folded, alg="philox").numpy()
        size = plan.training.batch_size
        steps += [order[i : i + size] for i in range(0, len(order), size)]
    return steps
