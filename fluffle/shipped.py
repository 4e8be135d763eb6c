"""Experiments that come with Fluffle: ``fluffle run mnist`` needs no file.

They lie in fluffle/experiments: in a checkout a link to the folder at the top.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from pathlib import Path

from fluffle.schemas import UserError
from fluffle.schemas.user_code import is_custom


def shipped() -> dict[str, Path]:
    """Names and files of those that run from anywhere: with a task of Fluffle's own."""
    found = {}
    for path in sorted(Path(str(files("fluffle"))).glob("experiments/*.toml")):
        task = tomllib.loads(path.read_text(encoding="utf-8")).get("task", {})
        if not is_custom(task.get("name", "")):
            found[path.stem] = path
    return found


def experiment_file(given: Path) -> Path:
    """The file that is meant: a file, or the name of a shipped experiment, where no file is called
    so.

    Raises: UserError for a name that none has, with the one that may have been meant.
    """
    if given.suffix or len(given.parts) != 1 or given.exists():
        return given
    known = shipped()
    if given.name in known:
        return known[given.name]
    close = difflib.get_close_matches(given.name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ";"
    raise UserError(
        f"there is no file {given} and no experiment of this name{meant} "
        f"fluffle brings {', '.join(known)}"
    )


def completions(incomplete: str) -> list[str]:
    """What a shell offers: names of shipped experiments, and experiment files that lie here."""
    here = (path.name for path in sorted(Path().glob("*.toml")))
    return [word for word in (*shipped(), *here) if word.startswith(incomplete)]
