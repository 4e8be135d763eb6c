"""What is kept in files, with points where a process can end and a disk can be full: the production
ledger and store, and what workers keep for clients.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import fluffle.aggregator.ledger.writer
import fluffle.aggregator.prefetch
import fluffle.aggregator.service
from fluffle.aggregator.ledger.archive import Archive, Place
from fluffle.aggregator.ledger.disk import cannot_write, make_folder
from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Tensors
from fluffle.worker.services.client_state import MEMORY_BYTES, ClientStates

if TYPE_CHECKING:
    from tests.chaos.model.world import World


@contextmanager
def faulty_disk(world: World) -> Iterator[None]:
    """Services that are made in here use these."""

    class FaultyStore(Store):
        def write(self, *arguments: Any, **named: Any) -> str:
            world.point("store.write")
            if world.disk_is_full():
                raise cannot_write(self.folder, OSError(errno.ENOSPC, "No space left on device"))
            half = self.folder / "half.tmp"
            make_folder(self.folder)
            half.write_bytes(b"half")
            world.point("store.torn", switch=False)
            half.unlink()
            name = super().write(*arguments, **named)
            world.point("store.written")
            return name

        def keep(self, *arguments: Any, **named: Any) -> None:
            world.point("store.keep")
            super().keep(*arguments, **named)

    class FaultyArchive(Archive):
        def add(self, *arguments: Any, **named: Any) -> None:
            world.point("archive.add")
            if world.disk_is_full():
                raise cannot_write(self._folder, OSError(errno.ENOSPC, "No space left on device"))
            super().add(*arguments, **named)
            world.point("archive.added")

        def sync(self) -> dict[str, Place]:
            world.point("archive.sync")
            return super().sync()

    class FaultyLedger(Ledger):
        @contextmanager
        def _transaction(self, check: bool = True) -> Iterator[None]:
            world.point("ledger.begin")
            with super()._transaction(check):
                yield
                # Nobody else may run in here: SQLite would have them wait, in real time.
                world.point("ledger.commit", switch=False)
                if world.disk_is_full():
                    raise sqlite3.OperationalError("database or disk is full")
            world.watch.committed(self)
            world.point("ledger.committed")

    with (
        patch.object(fluffle.aggregator.service, "Ledger", FaultyLedger),
        patch.object(fluffle.aggregator.ledger.writer, "Store", FaultyStore),
        patch.object(fluffle.aggregator.ledger.writer, "Archive", FaultyArchive),
        patch.object(fluffle.aggregator.prefetch, "MAX_PREFETCH", world.setting.max_prefetch),
    ):
        yield


class FaultyStates(ClientStates):
    """A worker's states: in a folder that all have in common, or, without one, in its memory."""

    def __init__(self, world: World, folder: Path | None) -> None:
        super().__init__(folder, memory_bytes=MEMORY_BYTES if folder is None else 0)
        self._world = world

    def load(self, run_id: str, client: str, name: str) -> Tensors | None:
        self._world.point("state.load")
        state = super().load(run_id, client, name)
        if state is None:
            self._world.watch.state_missed(client, name)
        return state

    def save(self, *arguments: Any) -> None:
        self._world.point("state.save")
        super().save(*arguments)
        self._world.point("state.saved")

    def _write(self, key: tuple[str, str], stem: str, state: Tensors) -> None:
        assert self._root is not None, "what is in memory here is far below the bound"
        half = self._root.joinpath(*key, f"{stem}.half.tmp")
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half")
        self._world.point("state.torn", switch=False)
        half.unlink()
        super()._write(key, stem, state)
