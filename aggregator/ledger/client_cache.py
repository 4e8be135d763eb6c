"""A strategy's arrays for each client (``cache/<entry>/…``), as files that change on their own.

A version changes a few entries of many: writing all of them with each version would cost clients x
model bytes every time. Each entry is a file of its own instead, written when the strategy has
replaced its arrays (which it never changes in place), and named by the version's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.strategies.base import State
from fluffle.schemas import Tensors

PREFIX = "cache/"


class CacheFiles:
    """Knows which arrays lie in files already: those very objects."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, Tensors] = {}

    def write_new(self, state: State, version: int, epoch: int) -> dict[str, str]:
        """Entry -> file of those whose arrays are not the ones written before.

        Raises: UserError when the disk is full.
        """
        files = {}
        for entry, tensors in _entries(state).items():
            before = self._written.get(entry, {})
            if any(before.get(key) is not array for key, array in tensors.items()):
                files[entry] = self._store.write(f"cache_{entry}", version, epoch, tensors)
                self._written[entry] = tensors
        return files

    def remember(self, state: State) -> None:
        """These came from the files."""
        self._written = _entries(state)


def read_entries(store: Store, names: Iterable[str]) -> State:
    """The arrays of these files, which nobody may write into."""
    state: State = {}
    for name in names:
        for key, array in store.read(name).items():
            array.flags.writeable = False
            state[key] = array
    return state


def _entries(state: State) -> dict[str, Tensors]:
    entries: dict[str, Tensors] = {}
    for key, array in state.items():
        if key.startswith(PREFIX):
            entries.setdefault(key.split("/")[1], {})[key] = array
    return entries
