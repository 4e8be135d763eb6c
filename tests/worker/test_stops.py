"""A training that is stopped: by its slot under the real clock, and within TensorFlow's loop."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.verify import verify
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment, Plan
from fluffle.worker.services.worker import WorkerService
from fluffle.worker.training.interrupt import TrainingStopped
from tests.simulation.pull import TASK


def test_a_slow_turn_gives_way_to_newer_versions_and_the_run_ends_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    # Given two slots, and clients of whom some take no time and some an hour
    (tmp_path / "pull.py").write_text(TASK)
    monkeypatch.setenv("FLUFFLE_TASK", str(tmp_path))
    experiment = Experiment.model_validate(
        {
            "experiment": {"versions": 6, "seed": 1},
            "task": {"name": "pull.py:Pull", "clients": 4},
            "training": {"optimizer": "sgd"},
            "participation": {"concurrency": 2, "stop_stale": True},
            "aggregation": {"strategy": "ringmaster", "delay_threshold": 2},
            "devices": {"hardware": "0 0 1e9 1e9; 360 0 1e9 1e9"},
            "evaluation": {"every_updates": 0},
        }
    )
    broker = EmbeddedBroker()
    worker = WorkerService(broker.worker("w", 2), "w", 2, simulate_devices=True)
    thread = threading.Thread(target=worker.run)
    thread.start()
    # When it runs under the real clock
    service = AggregatorService(experiment, broker.aggregator(), tmp_path / "run", run_id="run")
    assert service.run() == "finished"
    thread.join()
    # Then the slow ones have stopped again and again, and nothing was counted twice or lost
    assert any("stopped: it has become too old" in line for line in said)
    ledger = LedgerReader(tmp_path / "run")
    assert verify(ledger) == []
    ledger.close()


@pytest.mark.tensorflow
def test_a_trainer_stops_after_a_batch_and_its_next_training_knows_nothing_of_it() -> None:
    from fluffle.worker.training.trainer import Trainer

    experiment = Experiment.model_validate(
        {
            "task": {"name": "digits-lr", "clients": 2},
            "training": {"optimizer": "adam", "epochs": 3, "batch_size": 8},
            "participation": {"stop_stale": True},
            "aggregation": {"max_staleness": 1},
        }
    )
    plan = Plan.of(experiment, "delta")
    # Given a trainer whose training would take for ever, and is stopped
    endless = plan.model_copy(
        update={"training": plan.training.model_copy(update={"epochs": 2**30})}
    )
    asked = iter([False, False, True])
    trainer = Trainer(endless)
    base = trainer.initial()
    with pytest.raises(TrainingStopped):
        trainer.train(base, "0", 1, stop=lambda: next(asked))
    # When it trains again, three epochs
    again = trainer.train(base, "1", 2, epochs=3, stop=lambda: False)
    # Then that gives the bytes of a trainer that has never stopped, and of a plan without stops
    for other in (plan, plan.model_copy(update={"stops_beyond": None})):
        fresh = Trainer(other).train(base, "1", 2)
        for name, array in fresh.tensors.items():
            np.testing.assert_array_equal(again.tensors[name], array)
        assert again.metrics == fresh.metrics
