"""Softmax regression on digits in NumPy: five full-batch steps of every client."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluffle import ArrayTask, Examples
from fluffle.worker.datasets import load

DATA = load("digits")
X, TEST = (a.reshape(len(a), -1) / 16.0 for a in (DATA.x_train, DATA.x_test))


class Digits(ArrayTask):
    """650 weights."""

    def weights(self) -> Any:
        return {"w": np.zeros((64, 10)), "b": np.zeros(10)}

    def dataset(self) -> Examples:
        return Examples(X, DATA.y_train)

    def train(self, weights: Any, client: str, rng: Any, state: Any) -> Any:
        mine = self.client_indices(client)
        for _ in range(5):
            p = predicted(weights, X[mine])
            p[np.arange(len(mine)), DATA.y_train[mine]] -= 1
            weights["w"] -= 0.5 * X[mine].T @ p / len(mine)
            weights["b"] -= 0.5 * p.mean(axis=0)
        return weights, len(mine), {}, {}

    def evaluate(self, weights: Any) -> Any:
        right = predicted(weights, TEST).argmax(axis=1) == DATA.y_test
        return {"accuracy": float(right.mean())}


def predicted(weights: Any, x: Any) -> Any:
    """Of each class."""
    z = x @ weights["w"] + weights["b"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
