"""What clients keep: bounded, whole or not at all, and always the state that the server means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Tensors, UserError
from worker.client_state import NEVER, SPARE, ClientStates, Training


def state(value: float, size: int = 4) -> Tensors:
    return {"control/0": np.full(size, value, np.float32), "residual/0": np.array(value)}


def value(tensors: Tensors | None) -> float | None:
    if not tensors:
        return None
    assert tensors["residual/0"].item() == tensors["control/0"].flat[0]
    return float(tensors["residual/0"].item())


def test_a_client_without_a_turn_has_an_empty_state_and_one_that_is_not_here_none() -> None:
    states = ClientStates()
    assert states.load("run", "7", NEVER) == {}
    assert states.load("run", "7", (3, 1)) is None


@pytest.mark.parametrize("memory_bytes", [0, 10**6])
def test_what_a_training_made_is_found_by_its_name(tmp_path: Path, memory_bytes: int) -> None:
    states = ClientStates(tmp_path, memory_bytes)
    states.save("run", "7", (3, 1), state(1.0), NEVER)
    states.save("run", "7", (5, 2), state(2.0), (3, 1))
    # The server may mean either: the second update may still be rejected.
    assert value(states.load("run", "7", (3, 1))) == 1.0
    assert value(states.load("run", "7", (5, 2))) == 2.0
    # Other clients and other runs have their own.
    assert states.load("run", "8", (3, 1)) is None
    assert states.load("other", "7", (3, 1)) is None


def test_workers_that_share_a_folder_find_each_others(tmp_path: Path) -> None:
    here, there = ClientStates(tmp_path, 0), ClientStates(tmp_path, 0)
    here.save("run", "7", (3, 1), state(1.0), NEVER)
    assert value(there.load("run", "7", (3, 1))) == 1.0


def test_memory_never_holds_more_than_its_bound_and_the_rest_comes_back(tmp_path: Path) -> None:
    # Given room for two states of 808 bytes
    states = ClientStates(tmp_path, memory_bytes=2000)
    for client in range(20):
        states.save("run", str(client), (client + 1, 0), state(client, 200), NEVER)
        assert states.held_bytes <= 2000
    # Then 18 are in files, and all come back as they were
    assert len(list(tmp_path.rglob("*.msgpack"))) == 18
    for client in range(20):
        loaded = states.load("run", str(client), (client + 1, 0))
        assert value(loaded) == client
    # And what one process kept in memory is there for the next when it has ended in order
    states.close()
    assert value(ClientStates(tmp_path).load("run", "19", (20, 0))) == 19


def test_a_temporary_store_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = ClientStates(memory_bytes=100)
    states.save("run", "7", (3, 1), state(1.0, 200), NEVER)
    assert len(list(tmp_path.rglob("*.msgpack"))) == 1
    assert value(states.load("run", "7", (3, 1))) == 1.0
    states.close()
    assert list(tmp_path.iterdir()) == []


def test_no_more_is_kept_of_a_client_than_the_server_can_still_mean(tmp_path: Path) -> None:
    for memory_bytes in (0, 10**6):
        states = ClientStates(tmp_path / str(memory_bytes), memory_bytes)
        # Given a client whose updates are counted once, then rejected over and over
        states.save("run", "7", (1, 0), state(1), NEVER)
        for turn in range(2, 20):
            states.save("run", "7", (turn, 0), state(turn), (1, 0))
        # Then the state that it goes on from is here, and the newest beside it
        kept = [t for t in range(30) if states.load("run", "7", (t + 1, 0)) is not None]
        assert [turn + 1 for turn in kept] == [1, *range(20 - SPARE, 20)]
        # And nothing older once the server means a newer one
        states.save("run", "7", (20, 3), state(20), (19, 0))
        assert [t for t in range(1, 30) if states.load("run", "7", (t, 0))] == [19]


def test_half_a_file_is_as_good_as_none(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0)
    states.save("run", "7", (3, 1), state(1.0), NEVER)
    (path,) = tmp_path.rglob("*.msgpack")
    path.write_bytes(path.read_bytes()[:-5])
    assert states.load("run", "7", (3, 1)) is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    states = ClientStates(tmp_path / "file", 0)
    with pytest.raises(UserError, match="cannot keep the state of client 7"):
        states.save("run", "7", (3, 1), state(1.0), NEVER)


#: Where a turn may be cut short, or what becomes of its update.
FATES = ("folded", "folded late", "rejected", "crash at a", "crash at b", "crash at c")


@given(st.lists(st.tuples(st.sampled_from(FATES), st.integers(0, 2)), max_size=25), st.booleans())
def test_a_client_goes_on_from_the_state_of_the_update_that_was_folded_last(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, int]], in_memory: bool
) -> None:
    """The protocol of the module's docstring, with a crash at any point of any turn.

    A training's state is the list of all trainings that led to it, as numbers; the server keeps
    the same of the update that it folded last.
    """
    states = ClientStates(tmp_path_factory.mktemp("states"), 10**6 * in_memory)
    history: dict[Training, float] = {NEVER: 0.0}
    folded, on_its_way, version = NEVER, None, 0

    def train(turn: int, after: Training) -> tuple[Training, float]:
        """One training, up to point a."""
        loaded = states.load("run", "7", after)
        assert loaded is not None
        before = value(loaded) or 0.0
        # Then it is the state of the last update that was folded when the turn was issued
        assert before == history[after]
        return (turn, version), before * 31 % 1e6 + turn + version / 100

    def save(made_by: Training, made: float, after: Training) -> None:
        history[made_by] = made
        states.save("run", "7", made_by, state(made), after)

    for turn, (fate, newer) in enumerate(turns, 1):
        after = folded
        made_by, made = train(turn, after)
        if fate != "crash at a":
            save(made_by, made, after)
        if fate in ("crash at a", "crash at b", "crash at c"):
            # The broker gives the turn to somebody else, who may have a newer model
            version += newer
            second, made_again = train(turn, after)
            save(second, made_again, after)
            assert (second != made_by) or made_again == made
            # Of two updates with one id, the first that came is folded
            made_by = made_by if fate == "crash at c" else second
        if on_its_way is not None:
            folded = max(folded, on_its_way)
            on_its_way = None
        if fate == "folded late":
            on_its_way = made_by
        elif fate != "rejected":
            folded = max(folded, made_by)
        version += newer
