"""What clients keep: bounded, whole or not at all, and always the state that the server means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.schemas import Tensors, UserError
from fluffle.schemas.messages import state_name
from fluffle.worker.services.client_state import SPARE, ClientStates


def state(value: float, size: int = 4) -> Tensors:
    return {"control/0": np.full(size, value, np.float32), "residual/0": np.array(value)}


def value(tensors: Tensors | None) -> float | None:
    if not tensors:
        return None
    assert tensors["residual/0"].item() == tensors["control/0"].flat[0]
    return float(tensors["residual/0"].item())


def named(turn: int, after: str = "") -> str:
    return state_name(after, turn, 0)


def test_a_client_without_a_turn_has_an_empty_state_and_one_that_is_not_here_none() -> None:
    states = ClientStates()
    assert states.load("run", "7", "") == {}
    assert states.load("run", "7", named(3)) is None


@pytest.mark.parametrize("memory_bytes", [0, 10**6])
def test_what_a_training_made_is_found_by_its_name(tmp_path: Path, memory_bytes: int) -> None:
    states = ClientStates(tmp_path, memory_bytes)
    first, second = named(3), named(5, named(3))
    states.save("run", "7", first, state(1.0), "")
    states.save("run", "7", second, state(2.0), first)
    # The server may mean either: the second update may still be rejected.
    assert value(states.load("run", "7", first)) == 1.0
    assert value(states.load("run", "7", second)) == 2.0
    # Other clients and other runs have their own.
    assert states.load("run", "8", first) is None
    assert states.load("other", "7", first) is None


def test_workers_that_share_a_folder_find_each_others(tmp_path: Path) -> None:
    here, there = ClientStates(tmp_path, 0), ClientStates(tmp_path, 0)
    here.save("run", "7", named(3), state(1.0), "")
    assert value(there.load("run", "7", named(3))) == 1.0


def test_memory_never_holds_more_than_its_bound_and_the_rest_comes_back(tmp_path: Path) -> None:
    # Given room for two states of 808 bytes
    states = ClientStates(tmp_path, memory_bytes=2000)
    for client in range(20):
        states.save("run", str(client), named(client), state(client, 200), "")
        assert states.held_bytes <= 2000
    # Then 18 are in files, and all come back as they were
    assert len(list(tmp_path.rglob("*.msgpack"))) == 18
    for client in range(20):
        assert value(states.load("run", str(client), named(client))) == client
    # And what one process kept in memory is there for the next when it has ended in order
    states.close()
    assert value(ClientStates(tmp_path).load("run", "19", named(19))) == 19


def test_a_temporary_store_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = ClientStates(memory_bytes=100)
    states.save("run", "7", named(3), state(1.0, 200), "")
    assert len(list(tmp_path.rglob("*.msgpack"))) == 1
    assert value(states.load("run", "7", named(3))) == 1.0
    states.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory_bytes", [0, 10**6])
def test_no_more_is_kept_of_a_client_than_the_server_can_still_mean(
    tmp_path: Path, memory_bytes: int
) -> None:
    # Given a client whose updates are all counted
    states, chain = ClientStates(tmp_path, memory_bytes), [""]
    for turn in range(1, 20):
        chain.append(named(turn, chain[-1]))
        states.save("run", "7", chain[-1], state(turn), chain[-2])
    # Then the newest three states are here: made, gone on from, and before
    assert [turn for turn in range(1, 20) if states.load("run", "7", chain[turn])] == [17, 18, 19]
    # When its updates are rejected over and over
    others = [named(turn, chain[-1]) for turn in range(20, 40)]
    for name in others:
        states.save("run", "7", name, state(1), chain[-1])
    # Then the one that it goes on from is here, the one before, and the newest made of it
    assert [turn for turn in range(1, 20) if states.load("run", "7", chain[turn])] == [18, 19]
    kept = [name for name in others if states.load("run", "7", name)]
    assert kept == others[-SPARE:]
    # And all but the one that counted are gone after the next two that count
    after = kept[-2]
    for turn in (50, 51, 52):
        states.save("run", "7", named(turn, after), state(turn), after)
        after = named(turn, after)
    assert not any(states.load("run", "7", name) for name in (*chain[1:], *others))


def test_half_a_file_is_as_good_as_none(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0)
    states.save("run", "7", named(3), state(1.0), "")
    (path,) = tmp_path.rglob("*.msgpack")
    path.write_bytes(path.read_bytes()[:-5])
    assert states.load("run", "7", named(3)) is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    states = ClientStates(tmp_path / "file", 0)
    with pytest.raises(UserError, match="cannot keep the state of client 7"):
        states.save("run", "7", named(3), state(1.0), "")


#: Where a turn may be cut short, or what becomes of its update.
FATES = ("folded", "late", "rejected", "crash at a", "crash at b", "crash at c")
turns_of_a_client = st.lists(
    st.tuples(st.sampled_from(FATES), st.integers(0, 2), st.booleans()), max_size=25
)


@given(turns_of_a_client, st.booleans())
def test_a_client_goes_on_from_the_state_of_the_update_that_was_folded_last(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, int, bool]], in_memory: bool
) -> None:
    """The protocol of the module's docstring, with a crash at any point of any turn.

    The server adds up what updates say has changed, as SCAFFOLD's does with c: it must stay equal
    to what the client keeps. A turn's outcome, how many versions pass, whether the aggregator is
    killed: it then forgets the last update that it folded, and gets it again from the broker.
    """
    states = ClientStates(tmp_path_factory.mktemp("states"), 10**6 * in_memory)
    total, newest, version = 0.0, "", 0
    waiting: list[tuple[str, str, float]] = []

    def train(turn: int, after: str, saves: bool = True) -> tuple[str, str, float]:
        """What an update says: (the state that it makes, what it went on from, what changed)."""
        before = states.load("run", "7", after)
        assert before is not None
        own = float(turn * 10 + version)  # a function of what the name is made of
        made = state_name(after, turn, version)
        if saves:
            states.save("run", "7", made, state(own), after)
        return made, after, own - (value(before) or 0.0)

    def arrive(update: tuple[str, str, float]) -> None:
        nonlocal total, newest
        made, after, change = update
        if after == newest:  # else it is superseded
            total, newest = total + change, made

    for turn, (outcome, passed, killed) in enumerate(turns, 1):
        forgotten = total, newest
        update = train(turn, newest, saves=outcome != "crash at a")
        version += passed
        if outcome in ("crash at a", "crash at b", "crash at c"):
            again = train(turn, newest)  # by whoever gets the turn; its update has the same id
            update = update if outcome == "crash at c" else again
        if outcome == "late":
            waiting.append(update)
        elif outcome != "rejected":
            arrive(update)
        if killed:  # before the fold was durable: a turn is issued that goes on from before
            total, newest = forgotten
            beside = train(turn + 1000, newest)
            if outcome not in ("late", "rejected"):
                arrive(update)
            arrive(beside)
        if waiting and passed == 2:
            arrive(waiting.pop(0))
        # Then the server's sum is what the client keeps
        assert total == (value(states.load("run", "7", newest)) or 0.0)
