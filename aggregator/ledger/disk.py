"""The disk of a run folder: what is made durable, and the one line when that fails."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from fluffle.schemas import UserError

#: No room, a quota, or the longest file that this process may write.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEE = "see to the disk and to who may write there"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a run folder, durably with its parents. Raises: UserError where this user may not."""
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(made):
            sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder} ({error.strerror}): choose an --out that you may "
            "write to (in containers: set UID and GID in .env)"
        ) from None


def cannot_write(folder: Path, error: Exception) -> UserError:
    """The one line for a disk that takes nothing more, and what to do about it."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    do = _what_to_do(error)
    return UserError(
        f"cannot write to {folder}: {why}. Nothing is lost: {do}, then run the same command "
        "with the same --out to resume"
    )


def is_of_the_disk(error: OSError) -> bool:
    """Whether it was the disk that took nothing more, rather than a network or a wrong path."""
    return error.errno in (*_FULL, errno.EIO, errno.EROFS)


def cannot_delete(path: Path, error: OSError) -> UserError:
    """The one line for a file that is of no use any more and cannot be deleted."""
    return UserError(
        f"cannot delete {path}: {error.strerror}. Nothing is lost: see to who may write there, "
        "then run the same command with the same --out to resume"
    )


def _what_to_do(error: Exception) -> str:
    if isinstance(error, sqlite3.Error):
        if "full" in str(error):
            return "make room"
        # SQLite says no more of a file that may not grow, or of a disk that fails.
        io = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
        return "make room if there is none, else see to the disk" if io else _SEE
    full = isinstance(error, OSError) and error.errno in _FULL
    return "make room" if full else _SEE
