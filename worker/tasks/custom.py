"""A task of one's own: a class in a Python file, loaded by path. Code never travels.

An experiment names it ``FILE.py:Class``. The file is looked for in the folder ``FLUFFLE_TASK``:
``fluffle run`` sets that to the experiment file's, workers and evaluators are told. A plan comes
over the network, so what it names has to lie in that folder itself, and no deeper.
``--task PATH/FILE.py:Class`` is a person's own word: it is used whatever the plan names.

How the file is loaded is in ``fluffle.schemas.user_code``.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from fluffle.schemas import UserError, user_code
from fluffle.schemas.extensions import FOLDER
from fluffle.schemas.user_code import load_module
from fluffle.worker.tasks.task import Task

#: What ``--data`` says, to the processes of ``fluffle run --workers``.
DATA = "FLUFFLE_TASK_DATA"


def is_custom(name: str) -> bool:
    """Whether this names a class in a file."""
    return ":" in name


def named_by_plan(name: str) -> type[Task]:
    """The class that an experiment names. Raises: UserError."""
    path, found = place_named_by_plan(name, "task")
    return load(f"{path}:{found}")


def place_named_by_plan(name: str, what: str) -> tuple[Path, str]:
    """Where the file that an experiment names lies on this machine, and the class in it.

    what: what it is to be, for an error. Raises: UserError.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        give = f"give --task PATH/{name}, or " if what == "task" else ""
        raise UserError(
            f"the experiment's {what} is {name}, and code does not travel: {give}"
            f"set {FOLDER} to the folder that has the file"
        )
    root = Path(folder).resolve()
    path, found = user_code.place_of(name, root)
    if path.parent != root or "/" in name:
        raise UserError(
            f"the {what} {name} lies outside {folder}, or deeper: an experiment may name a file in "
            "that folder itself and no other"
        )
    return path, found


def load(place: str) -> type[Task]:
    """The class at ``PATH/FILE.py:Class``. Raises: UserError."""
    file, colon, name = place.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(f"the task {place} is not like my_task.py:MyTask")
    path = Path(file).resolve()
    return checked(getattr(load_module(path), name, None), name, str(path))


def checked(found: object, name: str, where: str) -> type[Task]:
    """The class, if it is a whole task. Raises: UserError."""
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"{where} has no class {name} that is a fluffle.Task")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"{name} in {where} lacks {missing}: see fluffle.Task")
    return found


def explain(error: BaseException, task: type[Task]) -> str:
    """What a task raised, and where in its file: one line."""
    return user_code.explain(error, user_code.file_of(task))
