"""Damage in a ledger's write-ahead log, which SQLite itself takes for the end of the log.

A log is a header and frames, one a page; each has a checksum over all before it, and the last frame
of a transaction says how large the database is then (https://sqlite.org/fileformat2.html#walformat).
SQLite reads to the first frame whose checksum is wrong and forgets what follows: right where a loss
of power has torn the last transaction, and wrong where a bit has flipped in an older one, as every
transaction that came after it would be gone and nobody would hear of it. Which of the two it was
can be told: a transaction is begun when the one before it is durable, so where one that is complete
is followed by more, all of it was durable once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER, _FRAME_HEADER = 32, 24
#: The first four bytes; the last bit says in which order checksums read their words.
_MAGIC = 0x377F0682
_Sum = tuple[int, int]


class _Frame(NamedTuple):
    commits: bool
    #: Of this log, rather than left over from the one that the file held before.
    ours: bool
    #: Whether its checksum follows from that of the frame before it, as it is written there.
    follows: bool


class Log(NamedTuple):
    """How a log was found."""

    #: What is wrong with it; None where nothing is.
    damage: str | None = None
    #: Its last transaction is there, and not whole.
    torn: bool = False


def examine_log(file: Path) -> Log:
    """Look at the log of this database, if there is one. Raises: OSError."""
    seen: bytes | None = None
    while True:
        try:
            log = file.with_name(f"{file.name}-wal").read_bytes()
        except FileNotFoundError:
            return Log()
        found = _examine(log)
        if found.damage is None or log == seen:  # else somebody may be writing to it
            return found
        seen = log


def _examine(log: bytes) -> Log:
    if len(log) <= _HEADER:
        return Log()
    magic, _, size, _, *salts = struct.unpack(">6I", log[:24])
    order = ">" if magic & 1 else "<"
    known = magic & ~1 == _MAGIC and size >= 512 and size & (size - 1) == 0
    if not known or _sum(log[:24], (0, 0), order) != struct.unpack(">2I", log[24:_HEADER]):
        return Log("the header of its write-ahead log is not as it was written")
    return _judge(list(_frames(log, size, tuple(salts), order)))


def _frames(log: bytes, size: int, salts: tuple[int, ...], order: str) -> Iterator[_Frame]:
    before = struct.unpack(">2I", log[24:_HEADER])
    step = _FRAME_HEADER + size
    for start in range(_HEADER, len(log) - step + 1, step):
        head, page = log[start : start + _FRAME_HEADER], log[start + _FRAME_HEADER : start + step]
        _, pages, *its, one, two = struct.unpack(">6I", head)
        ours = tuple(its) == salts
        follows = ours and _sum(page, _sum(head[:8], before, order), order) == (one, two)
        before = one, two
        yield _Frame(pages > 0, ours, follows)


def _judge(frames: list[_Frame]) -> Log:
    first = next((i for i, frame in enumerate(frames) if not frame.follows), len(frames))
    rest = frames[first:]
    torn = any(frame.commits and frame.ours for frame in rest)
    # A bit that has flipped in a checksum is seen in its own frame and in the next
    whole = next((i for i in (1, 2) if i < len(rest) and rest[i].follows), len(rest))
    end = next((i for i in range(whole, len(rest)) if not rest[i].follows), len(rest))
    if whole < len(rest) and any(frame.commits for frame in rest[: end - 1]):
        what = f"frame {first + 1} of its write-ahead log is not as it was written"
        return Log(f"{what}, and others were written after it")
    return Log(torn=torn)


def _sum(data: bytes, before: _Sum, order: str) -> _Sum:
    one, two = before
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for first in words:
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + next(words) + one) & 0xFFFFFFFF
    return one, two
