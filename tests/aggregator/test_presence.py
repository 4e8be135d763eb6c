"""Who is here: said once, within bounds, whatever is sent."""

from __future__ import annotations

from pathlib import Path

from fluffle.aggregator.presence import EVERY_S, LINES, MOST, Presence
from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Event, Experiment, Run

RUN = Run(run_id="run", run_started=0, epoch=1)


def joined(worker: str, slots: int | None = 4) -> Event:
    return Event(run=RUN, kind="joined", worker=worker, slots=slots)


def left(worker: str) -> Event:
    return Event(run=RUN, kind="left", worker=worker)


def test_who_joins_and_leaves_is_said_once(said: list[str]) -> None:
    # Given
    presence = Presence(lambda: 0.0)
    # When: it joins, joins again (another leader), leaves, leaves again, and a stranger leaves
    for event in (joined("a"), joined("a"), joined("b", None), left("a"), left("a"), left("c")):
        presence.hear(event)
    # Then
    assert said == ["worker a joined (4 slots)", "worker b joined (1 slot)", "worker a left"]
    assert (presence.workers, presence.slots) == (1, 1)


def test_a_flood_of_names_is_neither_printed_nor_remembered(said: list[str]) -> None:
    # Given
    now = 0.0
    presence = Presence(lambda: now)
    # When
    for number in range(2 * MOST):
        presence.hear(joined(f"w{number}"))
    now = EVERY_S
    presence.flush()
    # Then
    assert len(said) == LINES + 1
    here = f"{MOST} are here with {4 * MOST} slots"
    assert said[-1] == f"workers joined or left {MOST - LINES} more times; {here}"


def test_the_service_says_who_joined_this_run(tmp_path: Path, said: list[str]) -> None:
    # Given: an aggregator that leads, and a worker that heard of its run
    broker = EmbeddedBroker()
    port = broker.aggregator()
    port.lead(0.0)
    tables = Experiment.model_validate({"task": {"clients": 2}})
    service = AggregatorService(tables, port, tmp_path, run_id="run")
    service.begin()
    worker = broker.worker("w", 4)
    # When
    for run_id in ("run", "another"):
        event = Event(run=RUN.model_copy(update={"run_id": run_id}), kind="joined", worker=run_id)
        worker.emit(Envelope.of(event))
    while service.pump(0.0):
        pass
    # Then
    assert said == ["worker run joined (1 slot)"]
    assert service.presence is not None
    assert service.presence.workers == 1
    service.close()
