"""Clients' state between their turns: a control variate, what compression left over.

A training makes an update and the client's next state, and the two must not part: if the server
has folded an update whose state is lost, or the client goes on from a state whose update never
came, they disagree about the client from then on. So the *server* says which state is right. A
state has a name, a hash over the chain of trainings that led to it (``messages.state_name``
of what it went on from, turn and base version), and

    assignment.after = the state that goes with this client's last update that was folded

    load(after) ─> train ─> save(name, after) ─> submit (confirmed) ─> ack the turn
                      a                       b                      c

    crash at a, b  the update does not exist; its state, if saved, is never named
    crash at c     the turn comes back and goes on from the same ``after``: with the same model it
                   makes the same state, with a newer one another beside it; whichever update is
                   folded, its state is the one that is named next
    rejected, lost, dropped out, run stopped before the buffer closed
                   never folded, never named: the client goes on from the state before
    two turns of a client at once (one was overdue, or another aggregator issued it)
                   both go on from one state; the second to arrive is rejected as ``superseded``

Hence SCAFFOLD's c stays the mean of all c_i, through any crash. Kept of a client are the state
that its newest turn went on from, the one before that (where an aggregator that was killed may
take it up again) and up to ``SPARE`` made since, any of which may be on its way.

A worker that does not have a state (it was made on a machine with which no folder is shared, or in
the memory of a process that was killed) starts without, and says so.

States are in memory up to a bound, in files beyond it: ``RUN/CLIENT/NAME-AFTER.msgpack``, there
whole or not at all. With a bound of 0 every state is a durable file before its update is sent.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from fluffle.schemas import DecodeError, Tensors, UserError
from fluffle.schemas.codec import pack, unpack
from fluffle.schemas.sizes import MIB
from fluffle.worker.datasets.cache import home_folder

#: States made from the same one: so many overdue turns of a client may answer, whichever counts.
SPARE = 8
_SUFFIX = ".msgpack"
#: How much stays in memory where not everything has to be durable at once.
MEMORY_BYTES = 256 * MIB

#: (run id, client)
_Key = tuple[str, str]


class ClientStates:
    """The states of any number of clients. Thread-safe; workers may share a folder."""

    def __init__(self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        """
        folder: made when it is first needed; None for a temporary one, gone after ``close``.
        memory_bytes: of tensors; beyond it go the clients to files that were saved longest ago.
        """
        self._root = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._limit = memory_bytes
        self._lock = threading.Lock()
        #: Of each client, by its name: what a state was made from, and the state.
        self._held: OrderedDict[_Key, dict[str, tuple[str, Tensors]]] = OrderedDict()
        #: Bytes of tensors in memory.
        self.held_bytes = 0

    def load(self, run_id: str, client: str, name: str) -> Tensors | None:
        """The state of this name, not to be written to; None where it is not here.

        Empty before the client's first update. Raises: UserError where it cannot be read.
        """
        if not name:
            return {}
        key = (run_id, client)
        with self._lock:
            held = self._held.get(key, {})
            return held[name][1] if name in held else self._read(key, name)

    def save(self, run_id: str, client: str, name: str, state: Tensors, after: str) -> None:
        """Keep what a training made that had gone on from ``after``.

        Again is as good as once. Raises: UserError where it cannot be written.
        """
        key = (run_id, client)
        with self._lock:
            held = self._held.setdefault(key, {})
            self._held.move_to_end(key)
            self.held_bytes += _size(state) - (_size(held[name][1]) if name in held else 0)
            held[name] = after, state
            while self._held and self.held_bytes > self._limit:
                self._spill(next(iter(self._held)))
            for old in _needless(self._kept(key), after):
                self._drop(key, old)

    def names(self, run_id: str, client: str) -> dict[str, str]:
        """The states of a client that are here, and what each was made from."""
        with self._lock:
            return self._kept((run_id, client))

    def drop(self, run_id: str, client: str, name: str) -> None:
        """Forget this state."""
        with self._lock:
            self._drop((run_id, client), name)

    def close(self) -> None:
        """What is in memory goes to files, unless they are temporary."""
        with self._lock:
            while self._held and self._root is not None and self._temporary is None:
                self._spill(next(iter(self._held)))
            self._held.clear()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _kept(self, key: _Key) -> dict[str, str]:
        """The states of a client that are here, oldest first, and what each was made from."""
        paths = sorted(self._paths(key, "*"), key=_written_at)
        files = dict(path.name.removesuffix(_SUFFIX).split("-") for path in paths)
        return files | {name: after for name, (after, _) in self._held.get(key, {}).items()}

    def _drop(self, key: _Key, name: str) -> None:
        if name in (held := self._held.get(key, {})):
            self.held_bytes -= _size(held.pop(name)[1])
        for path in self._paths(key, name):
            path.unlink(missing_ok=True)

    # ---- files

    def _paths(self, key: _Key, name: str) -> list[Path]:
        if self._root is None:
            return []
        return list(self._root.joinpath(*key).glob(f"{name}-*{_SUFFIX}"))

    def _spill(self, key: _Key) -> None:
        for name, (after, state) in self._held[key].items():
            self._write(key, f"{name}-{after}", state)
        self.held_bytes -= sum(_size(state) for _, state in self._held.pop(key).values())

    def _write(self, key: _Key, stem: str, state: Tensors) -> None:
        if self._root is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fluffle-")
            self._root = Path(self._temporary.name)
        path = self._root.joinpath(*key, stem + _SUFFIX)
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it tells of data
            with temporary.open("wb") as file:
                file.write(pack({}, state))
                if not self._limit:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UserError(
                f"cannot keep the state of client {key[1]} in {path.parent}: {error.strerror}"
            ) from error

    def _read(self, key: _Key, name: str) -> Tensors | None:
        try:
            for path in self._paths(key, name):
                return unpack(path.read_bytes())[1]
        except (FileNotFoundError, DecodeError):  # damaged is as good as lost
            return None
        except OSError as error:
            raise UserError(
                f"cannot read the state of client {key[1]} in {self._root}: {error.strerror}"
            ) from error
        return None


def _written_at(path: Path) -> int:
    with suppress(FileNotFoundError):  # another worker found it needless meanwhile
        return path.stat().st_mtime_ns
    return 0


def _needless(kept: dict[str, str], after: str) -> list[str]:
    """What the server cannot mean any more once it has named ``after``."""
    before = kept.get(after)
    older = None if before is None else kept.get(before)
    gone = [
        name
        for name, made_from in kept.items()
        if older is not None and name != before and older in (name, made_from)
    ]
    return gone + [name for name, made_from in kept.items() if made_from == after][:-SPARE]


def _size(state: Tensors) -> int:
    return sum(array.nbytes for array in state.values())


def state_folder() -> Path:
    """Where a worker keeps states unless told: ``fluffle`` in the user's folder for such."""
    states = os.environ.get("XDG_STATE_HOME") or home_folder() / ".local" / "state"
    return Path(states) / "fluffle"
