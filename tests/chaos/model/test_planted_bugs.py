"""A checker that finds nothing proves nothing: eight bugs, planted one by one, are all found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from fluffle.aggregator.coordinator.coordinator import Coordinator
from fluffle.aggregator.coordinator.effects import MakeVersion, SaveBuffer
from fluffle.aggregator.coordinator.turns import Turns
from fluffle.aggregator.leader import Leader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.broker import Envelope
from fluffle.schemas import Assignment, ClientUpdate
from fluffle.schemas.messages import state_name
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.slot import Slot
from tests.chaos.model.explore import broken, explore
from tests.chaos.model.faults import draw
from tests.chaos.model.minimise import minimise

#: Each bug is found within so many schedules.
WITHIN = 300

Plant = Callable[[pytest.MonkeyPatch], None]


def acks_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Updates are acked, and then recorded."""
    do = Leader._do

    def planted(self: Leader, effect: Any, delivery: Any) -> None:
        if isinstance(effect, MakeVersion | SaveBuffer):
            self._settle()
        do(self, effect, delivery)

    patch.setattr(Leader, "_do", planted)


def dedupes_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """Which updates are in is one transaction, and what was made of them the next."""
    add_folds = Ledger._add_folds

    def planted(self: Ledger, *arguments: Any) -> None:
        add_folds(self, *arguments)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    patch.setattr(Ledger, "_add_folds", planted)


def acks_turns_before_the_confirm(patch: pytest.MonkeyPatch) -> None:
    """A worker lets go of a turn, and then sends its answer."""

    take = Slot._take

    def planted(self: Slot, delivery: Any) -> None:
        self._port.ack(delivery)
        take(self, delivery)

    patch.setattr(Slot, "_take", planted)


def acks_what_the_open_buffer_holds(patch: pytest.MonkeyPatch) -> None:
    """An update of the open buffer that comes back is taken for one that is recorded."""
    seen_in = Leader._seen_in

    def planted(self: Leader, message: Any) -> Any:
        if isinstance(message, ClientUpdate) and message.update_id in self._unacked:
            return "ledger"
        return seen_in(self, message)

    patch.setattr(Leader, "_seen_in", planted)


def lets_a_stale_leader_commit(patch: pytest.MonkeyPatch) -> None:
    """No transaction asks for the epoch."""
    patch.setattr(Ledger, "_begun", lambda self: self.epoch)


def counts_a_resident_as_often_as_it_sends(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks which of a resident's versions count already."""
    on_client_update = Coordinator._on_client_update

    def planted(self: Coordinator, *arguments: Any) -> Any:
        self.admission.residents.clear()
        return on_client_update(self, *arguments)

    patch.setattr(Coordinator, "_on_client_update", planted)


def names_the_state_that_was_asked_for_last(patch: pytest.MonkeyPatch) -> None:
    """A client goes on from what its newest turn will leave it with, folded or not."""
    open_turn = Turns._open

    def planted(self: Turns, client: str, version: int, now: float) -> Assignment:
        turn = open_turn(self, client, version, now)
        if self._states is not None:
            self._states[client] = state_name(turn.after or "", turn.turn, version)
        return turn

    patch.setattr(Turns, "_open", planted)
    patch.setattr(Turns, "superseded", lambda self, update: False)


def sends_an_update_before_its_state_is_kept(patch: pytest.MonkeyPatch) -> None:
    """A worker that ends in between has lost what its client goes on from."""
    save, send = ClientStates.save, Slot._send
    late: WeakKeyDictionary[ClientStates, list[Any]] = WeakKeyDictionary()

    def planted_save(self: ClientStates, *arguments: Any) -> None:
        late.setdefault(self, []).append(arguments)

    def planted_send(self: Slot, envelope: Envelope) -> None:
        send(self, envelope)
        states = self._worker.states
        for arguments in late.pop(states, []):
            save(states, *arguments)

    patch.setattr(ClientStates, "save", planted_save)
    patch.setattr(Slot, "_send", planted_send)


BUGS: Sequence[Plant] = (
    acks_before_the_commit,
    dedupes_outside_the_transaction,
    acks_turns_before_the_confirm,
    acks_what_the_open_buffer_holds,
    lets_a_stale_leader_commit,
    counts_a_resident_as_often_as_it_sends,
    names_the_state_that_was_asked_for_last,
    sends_an_update_before_its_state_is_kept,
)


def batches() -> Iterator[range]:
    return (range(at, at + 10) for at in range(0, WITHIN, 10))


def by_what_breaks(seeds: range) -> dict[int, list[str]]:
    """The schedules that break an invariant, and do not only end an aggregator."""
    broken = explore(seeds).broken
    return {seed: why for seed, why in broken.items() if "died" not in str(why)}


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found_and_its_history_is_minimal(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given production code with a bug
    plant(monkeypatch)
    # When schedules are explored, then one of the first few hundred shows it
    # (by what it breaks: a database that refuses it is another guard)
    found = next(filter(None, map(by_what_breaks, batches())), None)
    assert found is not None, f"not found within {WITHIN} schedules"
    # And the schedule that is left cannot do with one fault less
    seed = min(found)
    faults = minimise(draw(seed), lambda fewer: bool(broken(seed, fewer)))
    assert broken(seed, faults)
    assert not any(broken(seed, faults[:i] + faults[i + 1 :]) for i in range(len(faults)))
    # And without the bug the same schedule shows nothing
    monkeypatch.undo()
    assert not broken(seed, faults)
