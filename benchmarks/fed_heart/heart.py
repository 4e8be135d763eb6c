"""What FLamby's benchmark has beside the task: its pooled measure, its baselines, its cycle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluffle import Examples, Selection
from fluffle.worker.tasks.heart import HeartLr, standardised


class Flamby(HeartLr):
    """As heart-lr, but tested as FLamby's "Pooled Test": all patients standardised together.

    trains: "each" hospital on its own patients; "pooled", one client with all of them, standardised
    together; or a hospital's number, one client with its patients alone.
    """

    def __init__(self, trains: str = "each") -> None:
        self.trains = trains

    def dataset(self) -> Examples:
        data = self._data
        if self.trains == "pooled":
            return Examples(_together(data.x_train, data.x_train), data.y_train)
        everybody = super().dataset()
        if self.trains == "each":
            return everybody
        alone = self.owners() == int(self.trains)
        return Examples(everybody.x[alone], everybody.y[alone])

    def test(self) -> Examples:
        data = self._data
        return Examples(_together(data.x_test, data.x_train), data.y_test)


def _together(x: Any, known: Any) -> Any:
    return standardised(x, None, known, None)


class Cycle(Selection):
    """One hospital after the other, in a new order each time round (Cyclic Weight Transfer)."""

    def __init__(self) -> None:
        self.version = 0

    def observe(self, version: int, counted: Sequence[Any]) -> None:
        self.version = version

    def choose(self, moment: Any, size: int) -> list[str]:
        lap, place = divmod(self.version, moment.clients)
        order = np.random.default_rng([moment.seed, lap]).permutation(moment.clients)
        return [str(order[place])]
