"""Files of users, with arrays, images and tables, read as ``ClientData``."""

from __future__ import annotations

from pathlib import Path

from fluffle.schemas import UserError
from fluffle.worker.tasks.client_data import in_order


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of these endings, in people's order: site-2 before site-10.

    Raises: UserError where there is none.
    """
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and visible(p)]
    if not found:
        raise UserError(f"{folder} has no file that ends with {', '.join(suffixes)}")
    return sorted(found, key=lambda path: in_order(path.name))


def folders_in(folder: Path) -> list[Path]:
    """The folders in it, in people's order. Raises: UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = [path for path in folder.iterdir() if path.is_dir() and visible(path)]
    if not found:
        raise UserError(f"{folder} has no folders in it")
    return sorted(found, key=lambda path: in_order(path.name))


def visible(path: Path) -> bool:
    """Not one of the hidden files that systems leave about."""
    return not path.name.startswith(".")
