"""A worker's own account of what it sent: one JSON object a line, for a person or a checker.

``sending`` is written before an answer leaves and ``confirmed`` after the broker has taken it, each
before anything else happens. So whatever ends the worker, and whenever: what is ``confirmed`` here
is in the broker's hands or in the ledger, and nothing of this worker is there that is not
``sending`` here. An answer that is sent twice has its lines twice.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TextIO

from fluffle.broker import Envelope
from fluffle.schemas import UserError

#: Of the first line of every journal.
_START = b'{"at": '


class Journal:
    """Appends to a file; without a path it writes nothing. Thread-safe: all slots share one."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises: UserError where the file cannot be written."""
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _check_ours(path)
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise _cannot_write(str(path), error) from error

    def sending(self, envelope: Envelope) -> None:
        """This is about to be sent. Raises: UserError where the file cannot be written."""
        self._write("sending", envelope)

    def confirmed(self, envelope: Envelope) -> None:
        """The broker has confirmed it. Raises: UserError where the file cannot be written."""
        self._write("confirmed", envelope)

    def _write(self, what: str, envelope: Envelope) -> None:
        if self._file is None:
            return
        line = {
            "at": round(time.time(), 3),
            "what": what,
            "type": envelope.type,
            "update_id": envelope.message_id,
            "base_version": envelope.headers.get("base_version"),
            "bytes": envelope.size,
        }
        with self._lock:
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as error:
                raise _cannot_write(self._file.name, error) from error


def _check_ours(path: Path) -> None:
    """Raises: UserError where another kind of file lies there; OSError."""
    if not path.is_file():
        return  # nothing is there, or a pipe or a device, which may be written to
    with path.open("rb") as file:
        start = file.read(len(_START))
    if start and start != _START:
        raise UserError(f"--journal {path} is there already, and no journal: give another name")


def _cannot_write(path: str, error: OSError) -> UserError:
    return UserError(f"cannot write the journal {path}: {error.strerror or error}")
