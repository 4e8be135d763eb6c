"""A trainer, whatever it trains with, and the outcome of one client's local training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fluffle.schemas import Tensors


@dataclass(frozen=True)
class Trained:
    """What one client's local training gave."""

    #: The local values, named as the model that it started from.
    tensors: Tensors
    #: How many examples the client has.
    examples: int
    #: The loss and the task's metrics over the last epoch, as ``fit`` reports them.
    metrics: dict[str, float]
    seconds: float = 0.0
    #: What the strategy wants with the update besides.
    extra: Tensors = field(default_factory=dict)
    #: What the client keeps for its next turn.
    state: Tensors = field(default_factory=dict)


class LocalTrainer(Protocol):
    """Trains and evaluates one plan's model. One for each thread; any number in a process."""

    def initial(self) -> Tensors:
        """The weights of version 0: a function of the plan's seed alone."""
        ...

    def train(
        self,
        base: Tensors,
        client: str,
        turn: int,
        epochs: int | None = None,
        state: Tensors | None = None,
        version: int = 0,
        stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """A client's local training: a function of its arguments and the run's seed.

        stop: asked now and then, from any thread. Raises: TrainingStopped soon after it says yes,
        where a training can be stopped at all.
        """
        ...

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """The loss and metrics on test examples, and how many those are; with ``state``, of the
        model that a client has with what it keeps.
        """
        ...


@dataclass(frozen=True)
class Job:
    """One training of several that an engine does together; as ``LocalTrainer.train`` has it."""

    client: str
    turn: int
    epochs: int | None = None
    version: int = 0
