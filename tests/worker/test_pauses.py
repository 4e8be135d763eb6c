"""A plan's pauses bind a worker as long as the plan's run does, and no longer."""

from __future__ import annotations

import threading
from pathlib import Path

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.service import AggregatorService
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext
from tests.worker.test_user_code import WEIGHTS, UsersTrainer


def test_a_pause_of_years_ends_with_its_run(tmp_path: Path) -> None:
    # Given a worker of one slot, and a run whose plan has it rest for years after its first turn
    broker = EmbeddedBroker()
    port = broker.worker("w", 1)
    shutdown = Shutdown(port)
    context = SlotContext(worker_id="w", port=port, shutdown=shutdown, states=ClientStates())
    trainer = UsersTrainer(None)
    slot = Slot(context, lambda plan: trainer)  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=slot.run)
    thread.start()

    def lead(name: str, pause_s: float) -> int:
        experiment = Experiment.model_validate(
            {
                "experiment": {"versions": 1, "max_minutes": 0.3},
                "task": {"clients": 1},
                "participation": {"pause_s": [pause_s, pause_s]},
                "evaluation": {"every_updates": 0},
            }
        )
        leader, folder = broker.aggregator(), tmp_path / name
        AggregatorService(experiment, leader, folder, run_id=name, initial=WEIGHTS).run()
        leader.close()
        return LedgerReader(folder).latest_version()

    assert lead("slow", 1e9) == 1
    # When another run follows
    made = lead("next", 0.0)
    shutdown.stop()
    thread.join()
    # Then the worker trains for it
    assert made == 1
