"""``fluffle init``: a first experiment with a task of one's own, which runs as it stands."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fluffle.invocation import to_paste
from fluffle.schemas.errors import UserError

#: What a person gets. They lie in fluffle/start.
FILES = ("my_task.py", "experiment.toml", "README.md")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
) -> None:
    """Write a first experiment with a task of your own, which runs as it stands."""
    for path in write_start(folder):
        typer.echo(path)
    typer.echo(f"next: {to_paste('run', folder / 'experiment.toml')}")


def write_start(folder: Path) -> list[Path]:
    """The files, written into an empty or a new folder. Raises: UserError."""
    start = files("fluffle.start")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a folder that is new or empty")
        return [Path(shutil.copyfile(str(start / f), folder / f)) for f in FILES]
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
