"""Credentials of a connection, read again when their files change, and what to do when refused.

    connect ─> refused ─> say it, once ─> wait 2 s, 4 s, … 10 minutes ─┬─> connect
                                            └─ a file has changed ─────┘

A user that was put out would else be refused twenty times a minute for as long as it runs, in
everybody's log. Whoever gives it another password has it back within two seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pika

_log = logging.getLogger(__name__)


class Credentials:
    """How to connect, as the files say now."""

    def __init__(self, read: Callable[[], pika.URLParameters], files: Sequence[Path]) -> None:
        """read: the parameters, from the files. Raises: what ``read`` does."""
        self._read = read
        self._files = files
        self._stamp = self._look()
        self._parameters = read()

    def changed(self) -> bool:
        """Whether a file is another than when the parameters were read."""
        return self._look() != self._stamp

    def current(self) -> pika.URLParameters:
        """The parameters. Raises: UserError where a file that has changed is none any more."""
        stamp = self._look()
        if stamp != self._stamp:
            self._parameters = self._read()
            self._stamp = stamp
        return self._parameters

    def _look(self) -> tuple[object, ...]:
        return tuple(map(_of_file, self._files))


class Refusals:
    """What the connections of one port were refused for: each is said once until one is let in."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """A person has to mend this, at the broker or in a file."""
        if text not in self._said:
            self._said.add(text)
            _log.warning(
                "%s; trying again ever more rarely, and at once when a file with a password or "
                "certificate changes",
                text,
            )

    def over(self) -> None:
        """A connection was let in."""
        self._said.clear()


def _of_file(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
