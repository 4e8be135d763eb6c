"""The audit log of a site: what it received and sent, a JSON object a line, chained by hashes.

Each line has the hash of the line before it (``before``) and its own (``sha256``, over all its
other fields)::

    {"n": 0, "at": …, "what": "begin",    …, "before": "000…", "sha256": "a1…"}
    {"n": 1, "at": …, "what": "received", …, "before": "a1…",  "sha256": "b2…"}
    {"n": 2, "at": …, "what": "sending",  …, "before": "b2…",  "sha256": "c3…"}

So a line that is edited, removed, added or moved breaks the chain there, and everything after it.
What is cut off at the end leaves a good chain: who wants to find that keeps the number and hash of
the last line elsewhere (``fluffle audit verify`` prints them, and takes them with ``--head``).

``sending`` is on the disk before the message leaves, so nothing leaves that is not here; a crash
may leave a ``sending`` without its ``confirmed``. A line that a loss of power has cut short is
removed at the next start, which says so in the log.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fluffle.schemas import UserError

_FIRST = "0" * 64


class AuditLog:
    """Appends to one log; thread-safe. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: UserError where it cannot be written, or is no unbroken log."""
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lost = _cut_short(path)
            self._count, self._head = verify(path) if path.exists() else (0, _FIRST)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(f"cannot write the audit log {path}: {error.strerror}") from None
        self.add("begin", **({"cut_short": lost} if lost else {}))

    def add(self, what: str, **about: Any) -> None:
        """One line, durable when this returns. Raises: UserError: then nothing may be done."""
        with self._lock:
            entry = {"n": self._count, "at": round(time.time(), 3), "what": what, **about}
            entry["before"] = self._head
            entry["sha256"] = _hash(entry)
            try:
                os.write(self._file, (json.dumps(entry) + "\n").encode())
                os.fsync(self._file)
            except OSError as error:
                raise UserError(
                    f"cannot write the audit log {self.path}: {error.strerror}; nothing leaves "
                    "without it"
                ) from None
            self._count, self._head = self._count + 1, entry["sha256"]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Everything so far."""
        return read(self.path)

    def close(self) -> None:
        """Nothing more is added."""
        os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries as they stand, unchecked. Raises: UserError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise UserError(f"{path}: line {number + 1} is no entry of an audit log")
                yield entry
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"{path}: line {number + 1} is no entry of an audit log") from None


def verify(path: Path, head: str = "") -> tuple[int, str]:
    """How many entries there are, and the hash of the last.

    head: a hash that has to be in the chain: that of the last line when somebody looked before.
    Raises: UserError that names the first line with which something is wrong.
    """
    before, count, found = _FIRST, 0, not head
    for entry in read(path):
        line = f"{path}: line {count + 1}"
        if entry.get("n") != count or entry.get("before") != before:
            raise UserError(f"{line} does not follow the one before it: one was removed or moved")
        if entry.get("sha256") != _hash(entry):
            raise UserError(f"{line} is not as it was written")
        before, count = entry["sha256"], count + 1
        found = found or before == head
    if not found:
        raise UserError(f"{path} does not contain the entry {head}: its end was cut off")
    return count, before


def _hash(entry: dict[str, Any]) -> str:
    bare = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _cut_short(path: Path) -> int:
    """Remove a last line that was not written to its end; how many bytes it was."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
    return len(content) - whole
