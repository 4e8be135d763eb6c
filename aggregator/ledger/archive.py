"""Kept updates: the messages as they were received, one after the other in segment files.

Durable before the ledger's transaction that names them, like weights: written as they are folded,
synced once for all that a version or partial checkpoint records. A crash before the transaction
leaves bytes that no row names, and never a row without its bytes. A segment belongs to one epoch,
so a leader that was replaced and one that follows never write to the same file. A segment is a
sequence of msgpack maps, which any msgpack reader can read.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fluffle.aggregator.ledger.disk import cannot_write, sync_folder
from fluffle.schemas.sizes import MIB

#: The folder of the segments in a run folder.
UPDATES = "updates"
#: A segment that has grown beyond this is followed by another.
SEGMENT_BYTES = 256 * MIB


class Place(NamedTuple):
    """Where a kept update lies, and what its bytes hash to."""

    segment: str
    start: int
    bytes: int
    sha256: str


class Archive:
    """Appends what one leader keeps. Raises: UserError when the disk is full."""

    def __init__(self, folder: Path, epoch: int, durable: bool = True) -> None:
        self._folder = folder / UPDATES
        self._epoch = epoch
        self._durable = durable
        self._file: BinaryIO | None = None
        self._segments = 0
        self._size = 0
        self._places: dict[str, Place] = {}

    def add(self, update_id: str, body: bytes) -> None:
        """Append a message; durable after ``sync``."""
        try:
            file = self._file or self._begin()
            file.write(body)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        digest = hashlib.sha256(body).hexdigest()
        self._places[update_id] = Place(Path(file.name).name, self._size, len(body), digest)
        self._size += len(body)

    def sync(self) -> dict[str, Place]:
        """Make all durable that was added since the last time, and say where it lies."""
        try:
            if self._file is not None:
                self._file.flush()
                if self._durable:
                    os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        if self._size > SEGMENT_BYTES:
            self.close()
        places, self._places = self._places, {}
        return places

    def close(self) -> None:
        """May be called twice."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # a full disk was said when it was written or synced
                file.close()

    def _begin(self) -> BinaryIO:
        self._folder.mkdir(exist_ok=True)
        self._segments += 1
        self._size = 0
        name = f"updates-e{self._epoch}-{self._segments:06d}.msgpack"
        # Never over another: what lies there may be all that is left of a run.
        self._file = (self._folder / name).open("xb")
        if self._durable:
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
        return self._file


def read_kept(folder: Path, place: Place) -> bytes | None:
    """The message that lies there; None where it does not."""
    try:
        with (folder / UPDATES / place.segment).open("rb") as file:
            file.seek(place.start)
            body = file.read(place.bytes)
    except OSError:
        return None
    return body if hashlib.sha256(body).hexdigest() == place.sha256 else None
