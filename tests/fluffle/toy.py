"""A task in NumPy that trains in no time: softmax regression on three clouds of points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASK = '''
import numpy as np

from fluffle import ArrayTask, Examples


class Clouds(ArrayTask):
    """Three classes in the plane."""

    def __init__(self, clients, partition, seed, spread=1.0, rate=0.5):
        super().__init__(clients, partition, seed)
        self.rate = rate
        rng = np.random.default_rng(7)
        y = rng.integers(3, size=600)
        middles = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
        x = (middles[y] + rng.normal(0, spread, (600, 2))).astype(np.float32)
        self.parts = Examples(x[:450], y[:450]), Examples(x[450:], y[450:])

    def dataset(self):
        return self.parts[0]

    def test(self):
        return self.parts[1]

    def weights(self):
        return {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}

    def train(self, weights, client, rng, state):
        mine = self.client_indices(client)
        x, y = self.parts[0].x[mine], self.parts[0].y[mine]
        wrong = self.chances(weights, x) - np.eye(3)[y]
        weights["w"] -= self.rate * (x.T @ wrong / len(mine)).astype(np.float32)
        weights["b"] -= self.rate * wrong.mean(axis=0).astype(np.float32)
        return weights, len(mine), {"loss": float(np.abs(wrong).mean())}, {}

    def evaluate(self, weights):
        x, y = self.parts[1]
        chances = self.chances(weights, x)
        loss = -np.log(chances[np.arange(len(y)), y] + 1e-9).mean()
        return {"loss": float(loss), "accuracy": float((chances.argmax(axis=1) == y).mean())}

    @staticmethod
    def chances(weights, x):
        scores = np.exp(x @ weights["w"] + weights["b"])
        return scores / scores.sum(axis=1, keepdims=True)
'''

TABLES: dict[str, Any] = {
    "experiment": {"name": "toy", "versions": 8},
    "task": {"name": "clouds.py:Clouds", "clients": 6},
    "partition": {"kind": "dirichlet", "alpha": 1.0},
    "aggregation": {"quorum": 3},
    "evaluation": {"every_updates": 6},
    "devices": {"delay": "half_normal", "delay_s": 4.0, "delay_of": "client"},
}

TOML = """
[experiment]
name = "toy"
versions = 8
[task]
name = "clouds.py:Clouds"
clients = 6
[partition]
kind = "dirichlet"
alpha = 1.0
[aggregation]
quorum = 3
[evaluation]
every_updates = 6
[devices]
delay = "half_normal"
delay_s = 4.0
delay_of = "client"
"""


def write_toy(folder: Path) -> Path:
    """The task and its experiment, in this folder; where the experiment is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clouds.py").write_text(TASK)
    (folder / "toy.toml").write_text(TOML)
    return folder / "toy.toml"
