"""``fluffle init``: a first experiment for each kind of person, which runs as it stands."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fluffle.invocation import to_paste
from fluffle.schemas.errors import UserError

_TASK = ("my_task.py", "experiment.toml", "README.md")
#: What a person gets, by the kind of start. They lie in fluffle/start, in a folder for each.
KINDS = {
    "keras": _TASK,
    "pytorch": _TASK,
    "sklearn": _TASK,
    "site": ("my_site.py", "make_data.py", "experiment.toml", "README.md"),
    "notebook": ("first.ipynb", "README.md"),
    "strategy": ("my_strategy.py", "experiment.toml", "README.md"),
}


def _completions(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    kind: Annotated[
        str,
        typer.Option(
            help="keras, pytorch or sklearn: a task of your own; site: data that stay where they "
            "are; notebook; strategy: how updates become a version.",
            autocompletion=_completions,
        ),
    ] = "keras",
) -> None:
    """Write a first experiment of your own, which runs as it stands."""
    for path in write_start(folder, kind):
        typer.echo(path)
    typer.echo(f"next: {_next(folder, kind)}")


def write_start(folder: Path, kind: str = "keras") -> list[Path]:
    """The files, written into an empty or a new folder. Raises: UserError."""
    if kind not in KINDS:
        raise UserError(f"--kind {kind}: it is {', '.join(KINDS)}")
    start = Path(str(files("fluffle.start"))) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a folder that is new or empty")
        return [Path(shutil.copyfile(start / name, folder / name)) for name in KINDS[kind]]
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None


def _next(folder: Path, kind: str) -> str:
    if kind == "notebook":
        return f"jupyter lab {folder / 'first.ipynb'}"
    if kind == "site":
        return f"read {folder / 'README.md'}: sites are processes of their own"
    virtual = ("--clock", "virtual") if kind == "strategy" else ()
    return to_paste("run", folder / "experiment.toml", *virtual)
