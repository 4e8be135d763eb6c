"""The disk of a run folder: what is made durable, and the one line when that fails."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from fluffle.schemas import UserError

#: No room, a quota, or the longest file that this process may write.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    do = "make room" if _is_full(error) else "see to the disk and to who may write there"
    return UserError(
        f"cannot write to {folder}: {why}. Nothing is lost: {do}, then run the same command "
        "with the same --out to resume"
    )


def cannot_delete(path: Path, error: OSError) -> UserError:
    """The one line for a file that is of no use any more and cannot be deleted."""
    return UserError(
        f"cannot delete {path}: {error.strerror}. Nothing is lost: see to who may write there, "
        "then run the same command with the same --out to resume"
    )


def _is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return "full" in str(error)
    return isinstance(error, OSError) and error.errno in _FULL
