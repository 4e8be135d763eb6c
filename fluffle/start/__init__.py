"""``fluffle init``: a first experiment with a task of one's own, which runs as it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from fluffle.schemas import UserError

#: What a person gets. They lie beside this file.
FILES = ("my_task.py", "experiment.toml", "README.md")


def write_start(folder: Path) -> list[Path]:
    """The files, written into an empty or a new folder. Raises: UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a folder that is new or empty")
        return [Path(shutil.copyfile(Path(__file__).with_name(f), folder / f)) for f in FILES]
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
