"""A trainer that costs microseconds: a function of (base, client, turn), as the real one is."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fluffle.schemas import Tensors, group
from fluffle.schemas.tensors import model_groups, named
from fluffle.worker.training.interrupt import TrainingStopped


@dataclass(frozen=True)
class Trained:
    """As the trainer's ``Trained``, which cannot be imported without TensorFlow."""

    tensors: Tensors
    examples: int
    metrics: dict[str, float]
    seconds: float = 0.0
    extra: Tensors = field(default_factory=dict)
    state: Tensors = field(default_factory=dict)


def initial_weights() -> Tensors:
    """Version 0."""
    return {
        "trainable/0": np.array([0.1, -0.2, 0.3], np.float32),
        "non_trainable/0": np.array([0.0, 1.0], np.float32),
    }


class TinyTrainer:
    """Trains a model of five numbers."""

    def __init__(self, sleep: Callable[[], None], failing: int) -> None:
        """
        sleep: lets the time of a training pass.
        failing: every so-many-th pair of client and turn fails; 0 for none.
        """
        self._sleep = sleep
        self._failing = failing

    def initial(self) -> Tensors:
        """The weights of version 0."""
        self._sleep()
        return initial_weights()

    def train(
        self,
        base: Tensors,
        client: str,
        turn: int | str,
        epochs: int | None = None,
        state: Tensors | None = None,
        version: int = 0,
        stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """Numbers whose sums are inexact: another order of folding gives other bytes in float32.

        Where the model brings a control variate, the client renews its own, as SCAFFOLD's does.
        """
        self._sleep()
        for _ in range(2 if stop is not None else 0):
            if stop is not None and stop():
                raise TrainingStopped
            self._sleep()
        drawn = zlib.crc32(f"{client}:{turn}".encode()) % 9973
        if self._failing and drawn % self._failing == 0:
            raise RuntimeError("this training fails")
        pull = np.float32(drawn / 9973)
        c = group("control", base)
        own = c if state is None else group("control", state) or [np.zeros_like(a) for a in c]
        following = [a * np.float32(0.5) + pull for a in own]
        return Trained(
            {
                name: a * np.float32(0.7) + pull * np.float32(0.3)
                for name, a in model_groups(base).items()
            },
            examples=1 + drawn % 50,
            metrics={"loss": float(pull)},
            extra=named("control", [a - b for a, b in zip(following, own, strict=True)]),
            state=named("control", following),
        )

    def evaluate(
        self, tensors: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """An accuracy that training raises."""
        self._sleep()
        return {"accuracy": float(np.clip(tensors["trainable/0"].mean(), 0, 1))}, 10
