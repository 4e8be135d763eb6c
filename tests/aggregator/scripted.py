"""A federation in one thread: the real service and broker, clients that answer with noise.

Nothing happens by itself: a test says when a turn is answered, in which order, and when the
aggregator dies or starts again. Time passes only when it says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.strategies.base import update_spec
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Assignment, ClientUpdate, Experiment, Tensors, decode, transforms
from fluffle.schemas.tensors import Spec, spec
from fluffle.schemas.transforms import Draws

#: A tensor of each kind: learned, a batch-norm statistic, a counter.
MODEL: Tensors = {
    "trainable/0": np.zeros((7, 5), np.float32),
    "trainable/1": np.zeros(5, np.float32),
    "non_trainable/0": np.zeros(5, np.float32),
    "non_trainable/1": np.zeros(1, np.int64),
}
#: More rounds of answers than any run here needs.
MOST_ROUNDS = 300


def noise(shapes: Spec, seed: int) -> Tensors:
    """Tensors whose every bit depends on the seed."""
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.normal(size=s) * 9).astype(d) for k, (d, s) in shapes.items()}


class Federation:
    """One run folder, one broker, and an aggregator that may die."""

    def __init__(self, folder: Path, *, code: Path | None = None, **tables: Any) -> None:
        """``code``: the folder of a strategy or selection from a file."""
        tables["aggregation"] = {"keep_updates": True, **tables.get("aggregation", {})}
        self.folder = folder
        self.code = code
        self.experiment = Experiment.model_validate(
            {
                "experiment": {"versions": 6},
                "task": {"clients": 8},
                "training": {"optimizer": "sgd"},
                "evaluation": {"every_updates": 0},
                **tables,
            }
        )
        strategy = make_strategy(self.experiment, code)
        self.sends: Literal["delta", "weights"] = strategy.sends
        # Privacy covers trainable weights alone.
        bare = self.experiment.privacy is not None
        model = {k: a for k, a in MODEL.items() if not bare or k.startswith("trainable/")}
        self.shapes = {False: update_spec(strategy, model), True: spec(model)}
        self.now = 0.0
        self.broker = EmbeddedBroker(lambda: self.now)
        self.worker = self.broker.worker("worker", 64)
        self.start()

    def start(self) -> None:
        """An aggregator begins, or resumes."""
        self.port = self.broker.aggregator()
        assert self.port.lead(1.0)
        self.service = AggregatorService(
            self.experiment,
            self.port,
            self.folder,
            run_id="run",
            code=self.code,
            clock=lambda: self.now,
        )
        self.service.begin()

    def die(self) -> None:
        """The aggregator is gone, with all that it had not made durable."""
        self.service.close()
        self.port.close()

    def wait(self, seconds: float) -> None:
        """Time passes, and what is due happens."""
        self.now += seconds
        self.settle()

    def settle(self) -> None:
        """The aggregator takes in everything that has arrived."""
        while self.service.pump(0.0):
            pass

    def answer(self, turns: int = 1) -> None:
        """The clients of the next turns answer, the newest first."""
        deliveries = []
        while len(deliveries) < turns and (one := self.worker.receive_assignment(0.0)) is not None:
            deliveries.append(one)
        for delivery in reversed(deliveries):
            turn = decode(delivery.envelope.body)
            assert isinstance(turn, Assignment)
            self.worker.submit(Envelope.of(self.update(turn)))
            self.worker.ack(delivery)
        self.settle()

    def update(self, turn: Assignment) -> ClientUpdate:
        """What this turn's client sends, trained from the version of the day it was chosen."""
        initial = turn.kind == "initialise"
        return ClientUpdate(
            run=turn.run,
            update_id=turn.assignment_id,
            client=turn.client,
            turn=turn.turn,
            base_version=turn.version,
            after=turn.after,
            worker="worker",
            sends="initial" if initial else self.sends,
            examples=0 if initial else 10 + turn.turn,
            tensors=noise(self.shapes[initial], turn.turn) if initial else self.sent(turn.turn),
        )

    def sent(self, turn: int) -> Tensors:
        """What leaves of this turn's delta."""
        delta = noise(self.shapes[False], turn)
        draws = Draws(np.random.default_rng(turn), np.random.default_rng(turn))
        return transforms.apply(self.experiment.update or (), delta, draws, {})[0]

    def finish(self, turns_at_once: int = 4) -> Path:
        """Answer every turn until the run is over; its folder."""
        for _ in range(MOST_ROUNDS):
            self.answer(turns_at_once)
            if self.service.outcome is not None:
                self.service.close()
                return self.folder
        pytest.fail(f"the run does not end: {self.service.outcome}")
