"""The tasks that come with Fluffle, and the way to one of one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from fluffle.schemas import Plan, UserError, user_code
from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.schemas.extensions import TASK, guarded
from fluffle.worker.datasets import Progress
from fluffle.worker.tasks import custom
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.client_data import among_sites
from fluffle.worker.tasks.heart import HeartLr
from fluffle.worker.tasks.images import (
    CifarCnn,
    DigitsLr,
    FashionCnn,
    FashionMlp,
    MnistCnn,
    MnistLr,
    MnistMlp,
)
from fluffle.worker.tasks.sequences import ShakespeareGru, WearablesCnn
from fluffle.worker.tasks.synthetic import SyntheticLr
from fluffle.worker.tasks.task import Task, examples_of

__all__ = ["TASKS", "MnistCnn", "load_task", "open_data", "prepare", "task_of", "trying", "use"]

TASKS: dict[str, type[Task]] = {
    "mnist-mlp": MnistMlp,
    "mnist-cnn": MnistCnn,
    "mnist-lr": MnistLr,
    "fashion-mlp": FashionMlp,
    "fashion-cnn": FashionCnn,
    "digits-lr": DigitsLr,
    "cifar-cnn": CifarCnn,
    "synthetic-lr": SyntheticLr,
    "shakespeare-gru": ShakespeareGru,
    "wearables-cnn": WearablesCnn,
    "heart-lr": HeartLr,
}

T = TypeVar("T")

_LOCK = threading.Lock()
#: What this process was told: ``--task``, whatever a plan names, and ``--data``.
_told: tuple[str | None, Path | None] = (None, None)


def use(task: str | None, data: Path | None) -> None:
    """From now on: this task, whatever a plan names, and this folder or file of data for a task
    from a file. Raises: UserError where there is no such task or data.
    """
    global _told
    if task is not None:
        custom.load(task)
    if data is not None and not data.exists():
        raise UserError(f"there is no data at {data}")
    with _LOCK:
        _told = (task, data)
        _load.cache_clear()


def prepare(name: str, progress: Progress) -> None:
    """Fetch what a task needs, before anybody waits for it. Raises: UserError."""
    _task_class(name).prepare(progress)


def open_data(plan: Plan) -> Task:
    """The task of a site, once its data have been read; it has to be one from a file.

    Raises: UserError.
    """
    if not custom.is_custom(_told[0] or plan.task.name):
        raise UserError(
            f"the task of this run, {plan.task.name}, brings data of its own: a site trains on its "
            "own, with a task file (--task FILE.py:Class)"
        )
    with among_sites():
        task = load_task(plan)
        if isinstance(task, ArrayTask):  # what it reads, and when, is its own
            return task
        trying(task, lambda: examples_of(task, "dataset"))
        trying(task, lambda: examples_of(task, "test"))
    return task


def load_task(plan: Plan) -> Task:
    """The plan's task: the same object for all trainers of this process. Raises: UserError."""
    return task_of(plan.task, plan.partition, plan.seed)


def task_of(table: TaskTable, partition: PartitionTable, seed: int) -> Task:
    """The task of an experiment's tables, as ``load_task``. Raises: UserError."""
    with _LOCK:
        return _load(_task_class(table.name), table, partition, seed)


@lru_cache(maxsize=2)
def _load(kind: type[Task], table: TaskTable, partition: PartitionTable, seed: int) -> Task:
    if table.parameters and kind in TASKS.values():
        raise UserError(f"[task.parameters] are for a task of your own, and {table.name} is none")
    task = _trying(kind, lambda: kind.of(table, partition, seed))
    task.validation_share = table.validation or 0.0
    task.data_dir = _told[1] or _folder_of(kind)
    return task


def _folder_of(kind: type[Task]) -> Path:
    file = user_code.file_of(kind)
    return file.parent if file.exists() else Path.cwd()


def _task_class(name: str) -> type[Task]:
    if _told[0] is not None:
        return custom.load(_told[0])
    if (made := user_code.given(name, "task")) is not None:
        return custom.checked(made, made.__name__, "this process")
    if custom.is_custom(name):
        return custom.named_by_plan(name)
    if name in TASKS:
        return TASKS[name]
    if (found := TASK.plugin(name)) is not None:
        return custom.checked(found, name, "the installed package")
    raise _unknown(name)


def check_name(name: str) -> None:
    """Raises: UserError where this is neither a file's task nor one that is known here."""
    if not custom.is_custom(name) and name not in (*TASKS, *TASK.installed()):
        raise _unknown(name)


def _unknown(name: str) -> UserError:
    known = ", ".join(sorted([*TASKS, *TASK.installed()]))
    return UserError(
        f"there is no task {name!r}: use one of {known}, or a file of your "
        "own, as my_task.py:MyTask"
    )


def trying(task: Task, action: Callable[[], T]) -> T:
    """What the code of a user's own raises is theirs to mend. Raises: UserError in its place."""
    return _trying(type(task), action)


def _trying(kind: type[Task], action: Callable[[], T]) -> T:
    return action() if kind in TASKS.values() else guarded("task", kind, action)
