"""Outputs: files that a command was told to write, and what may not be written over."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fluffle.schemas import UserError


def may_replace(path: Path, suffixes: Collection[str], option: str) -> None:
    """Raises: UserError where a file or a folder of another kind lies there.

    suffixes: what may be replaced ends in one of these. option: where the path was given.
    """
    free = path.is_dir() and (not any(path.iterdir()) or (path / "saved_model.pb").exists())
    if path.exists() and not free and path.suffix not in suffixes:
        raise UserError(
            f"{option} {path} is there already, and no {' or '.join(sorted(suffixes))} file: give "
            "another name, or move it away; nothing was changed"
        )


def may_fill(folder: Path, files: Collection[str], page: str, ours: str) -> None:
    """Raises: UserError where one of these files lies in a folder in which no page of ours is.

    ours: what is near the top of a page of ours.
    """
    try:
        with (folder / page).open("rb") as file:
            known = ours.encode() in file.read(4096)
    except OSError:
        known = False
    found = next((name for name in (page, *files) if (folder / name).exists()), None)
    if found is not None and not known:
        raise UserError(
            f"{folder / found} is there already, and not of an earlier report: give another --out, "
            "or move it away; nothing was changed"
        )
