"""What clients keep from one turn to their next: a control variate, what compression left over.

A training is named by (turn, base version): ``update_id`` and what it was trained from. It makes
an update and the client's next state, and the two must not part: the server has folded an update
whose state is lost, or the client goes on from a state whose update never came, and from then on
they disagree about the client for good. So the *server* says which state is right::

    assignment.after = the training whose update, of all of this client's, was folded last

    load(after) ─> train ─> save(turn, version) ─> submit (confirmed) ─> ack the turn
                      a                       b                      c

    crash at a, b  the update does not exist; the saved state, if any, is never named
    crash at c     the turn comes back and starts from the same ``after``: with the same model it
                   gives the same bytes, with a newer one a state beside the first; whichever
                   update is folded, its state is the one that is named next
    rejected, lost, dropped out, run stopped before the buffer closed
                   never folded, never named: the client goes on from the state before

Kept of a client are the state named by the newest turn that was saved and up to ``SPARE`` made
since, of which some may be on their way to the server still. One thing remains: a turn that was
overdue and is folded late in concurrent mode was trained beside a newer one, from the same state.

A worker that has no such state (it was made on a machine with which no folder is shared, or in
the memory of a process that was killed) starts without, and says so.

States are in memory up to a bound, in files beyond it: ``RUN/CLIENT/TURN-VERSION.msgpack``, there
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

from schemas import DecodeError, Tensors, UserError
from schemas.codec import pack, unpack

#: (turn, base version): see schemas.messages.Training.
Training = tuple[int, int]
#: Before a client's first update.
NEVER: Training = (0, 0)
#: States younger than the one that the server named; more than three answers are never on the way.
SPARE = 3
_SUFFIX = ".msgpack"
#: How much stays in memory where not everything has to be durable at once.
MEMORY_BYTES = 256 * 1024**2

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
        self._held: OrderedDict[_Key, dict[Training, Tensors]] = OrderedDict()
        #: Bytes of tensors in memory.
        self.held_bytes = 0

    def load(self, run_id: str, client: str, after: Training) -> Tensors | None:
        """The state that this training made, not to be written to; None where it is not here.

        Empty before the client's first update. Raises: UserError where it cannot be read.
        """
        if after == NEVER:
            return {}
        with self._lock:
            held = self._held.get((run_id, client), {})
            return held[after] if after in held else self._read((run_id, client), after)

    def save(
        self, run_id: str, client: str, made_by: Training, state: Tensors, after: Training
    ) -> None:
        """Keep what a training made that had started from the state of ``after``.

        Again is as good as once. Raises: UserError where it cannot be written.
        """
        key = (run_id, client)
        with self._lock:
            held = self._held.setdefault(key, {})
            self._held.move_to_end(key)
            self.held_bytes += _size(state) - _size(held.get(made_by, {}))
            held[made_by] = state
            while self._held and self.held_bytes > self._limit:
                self._spill(next(iter(self._held)))
            kept = self._kept(key)
            since = [training for training in kept if training > after]
            for training in (*(t for t in kept if t < after), *since[:-SPARE]):
                self._drop(key, training)

    def close(self) -> None:
        """What is in memory goes to files, unless they are temporary."""
        with self._lock:
            while self._held and self._root is not None and self._temporary is None:
                self._spill(next(iter(self._held)))
            self._held.clear()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _kept(self, key: _Key) -> list[Training]:
        """The trainings of a client whose states are here, oldest first."""
        paths = () if self._root is None else self._root.joinpath(*key).glob(f"*{_SUFFIX}")
        return sorted({*self._held.get(key, {}), *(_training(path) for path in paths)})

    def _drop(self, key: _Key, training: Training) -> None:
        self.held_bytes -= _size(self._held.get(key, {}).pop(training, {}))
        if self._root is not None:
            _path(self._root, key, training).unlink(missing_ok=True)

    # ---- files

    def _spill(self, key: _Key) -> None:
        for training, state in self._held[key].items():
            self._write(key, training, state)
        self.held_bytes -= sum(map(_size, self._held.pop(key).values()))

    def _write(self, key: _Key, training: Training, state: Tensors) -> None:
        if self._root is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fluffle-")
            self._root = Path(self._temporary.name)
        path = _path(self._root, key, training)
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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

    def _read(self, key: _Key, training: Training) -> Tensors | None:
        if self._root is None:
            return None
        path = _path(self._root, key, training)
        try:
            return unpack(path.read_bytes())[1]
        except (FileNotFoundError, DecodeError):  # damaged is as good as lost
            return None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error


def _path(root: Path, key: _Key, training: Training) -> Path:
    return root.joinpath(*key, f"{training[0]}-{training[1]}{_SUFFIX}")


def _training(path: Path) -> Training:
    turn, version = path.name.removesuffix(_SUFFIX).split("-")
    return int(turn), int(version)


def _size(state: Tensors) -> int:
    return sum(array.nbytes for array in state.values())


def state_folder() -> Path:
    """Where a worker keeps states unless told: ``fluffle`` in the user's folder for such."""
    states = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(states) / "fluffle"
