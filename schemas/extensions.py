"""Extension points: what others add without a fork, from an installed package or from a file.

A package offers an object by a name, as an entry point of the group of its kind. A file beside the
experiment offers one as ``FILE.py:Name``. Code never travels: each process loads what it needs by
itself, and a name that came over the network is only looked for among the installed entry points
and in the folder that ``FLUFFLE_TASK`` says.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from fluffle.schemas import user_code
from fluffle.schemas.errors import UserError, contained
from fluffle.schemas.user_code import explain, is_custom, load_module, place_of

T = TypeVar("T")

#: The folder in which a file that an experiment names is looked for.
FOLDER = "FLUFFLE_TASK"


@dataclass(frozen=True)
class ExtensionPoint:
    """One kind of extension."""

    #: What one of them is called, with its article.
    noun: str
    #: The group of its entry points.
    group: str

    def installed(self) -> list[str]:
        """The names that installed packages offer; nothing is loaded."""
        return sorted(_entry_points(self.group))

    def check_name(self, key: str, name: str, ours: Iterable[str]) -> None:
        """Raises: ValueError for a name that can mean nothing here, with the one meant perhaps."""
        known = [*ours, *self.installed()]
        if name in known or is_custom(name):
            return
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"{key} = {name!r} is none of {', '.join(known)}, and no file of your own, as "
            "my_file.py:MyClass" + (f"; did you mean {close[0]}?" if close else "")
        )

    def plugin(self, name: str) -> Any | None:
        """What an installed package offers by this name. Raises: UserError where it cannot."""
        found = _entry_points(self.group).get(name)
        if found is None:
            return None
        try:
            return found.load()
        except Exception as error:
            said = explain(error, Path(found.value))
            raise UserError(f"{self.noun} {name} cannot be loaded: {said}") from error

    def load(self, name: str, folder: Path | None = None) -> Any:
        """The object of this name: of an installed package, else of a file in ``folder``.

        By default the folder is the one that ``FLUFFLE_TASK`` says. Raises: UserError.
        """
        found = self.plugin(name)
        return found if found is not None else from_file(self.noun, name, folder)

    def make(
        self, name: str, parameters: Mapping[str, Any] | None = None, folder: Path | None = None
    ) -> Any:
        """What the class of this name makes of keyword arguments. Raises: UserError."""
        made = self.load(name, folder)
        try:
            return made(**(parameters or {}))
        except Exception as error:
            raise UserError(f"cannot make {self.noun} {name}: {told(error, made)}") from error


def from_file(noun: str, name: str, folder: Path | None = None) -> Any:
    """The object ``FILE.py:Name`` of a folder, by default ``FLUFFLE_TASK``'s. Raises: UserError."""
    if (made := user_code.given(name, noun.split(" ", 1)[1])) is not None:
        return made
    if not is_custom(name):
        raise UserError(f"there is no {noun.split(' ', 1)[1]} {name!r} on this machine")
    said = os.environ.get(FOLDER) if folder is None else folder
    if not said:
        raise UserError(
            f"the experiment names {noun} in {name}, and code does not travel: set {FOLDER} to the "
            "folder that has the file"
        )
    root = Path(said).resolve()
    path, wanted = place_of(name, root)
    if not path.is_relative_to(root):
        raise UserError(f"{name} lies outside {root}: an experiment may not name that")
    found = getattr(load_module(path), wanted, None)
    if found is None:
        raise UserError(f"{path} has no {wanted}")
    return found


def check_verbs(noun: str, name: str, made: object, verbs: Iterable[str]) -> None:
    """Raises: UserError where an object lacks a method of its protocol."""
    missing = [verb for verb in verbs if not callable(getattr(made, verb, None))]
    if missing:
        raise UserError(f"{noun} {name} lacks {', '.join(missing)}: see docs/extending.md")


def guarded(what: str, made: Any, action: Callable[[], T]) -> T:
    """What a class of others (or an object of it) raises is its author's to mend.

    Raises: UserError in its place.
    """
    try:
        return action()
    except UserError:
        raise
    except BaseException as error:
        contained(error)
        raise UserError(f"the {what} failed: {told(error, made)}") from error


def told(error: BaseException, made: Any) -> str:
    """What a class of others (or an object of it) raised, and in which of its lines: one line."""
    return explain(error, user_code.file_of(made if inspect.isclass(made) else type(made)))


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=group)}


STRATEGY = ExtensionPoint("a strategy", "fluffle.strategies")
TASK = ExtensionPoint("a task", "fluffle.tasks")
DATA_SET = ExtensionPoint("a data set", "fluffle.datasets")
PARTITION = ExtensionPoint("a partition", "fluffle.partitions")
UPDATE_STEP = ExtensionPoint("a step", "fluffle.update_steps")
ALGORITHM = ExtensionPoint("an algorithm", "fluffle.algorithms")
SELECTION = ExtensionPoint("a selection", "fluffle.selections")
TRIGGER = ExtensionPoint("a trigger", "fluffle.triggers")
MECHANISM = ExtensionPoint("a mechanism", "fluffle.mechanisms")
TRACKER = ExtensionPoint("a tracker", "fluffle.trackers")
