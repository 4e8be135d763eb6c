"""The tasks that come with Fluffle."""

from __future__ import annotations

import threading
from functools import lru_cache

from schemas import Plan, UserError
from schemas.experiment import PartitionTable, TaskTable
from worker.datasets import Progress
from worker.task import Task
from worker.tasks.images import (
    CifarCnn,
    DigitsLr,
    FashionCnn,
    FashionMlp,
    MnistCnn,
    MnistLr,
    MnistMlp,
)
from worker.tasks.sequences import ShakespeareGru, WearablesCnn
from worker.tasks.synthetic import SyntheticLr

__all__ = ["TASKS", "MnistCnn", "check", "load_task", "prepare"]

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
}

_LOCK = threading.Lock()


def prepare(name: str, progress: Progress) -> None:
    """Fetch what a task needs, before anybody waits for it. Raises: UserError."""
    _task_class(name).prepare(progress)


def check(table: TaskTable, partition: PartitionTable, seed: int) -> None:
    """Raises: UserError if the task's data cannot be split like that; better before than while."""
    with _LOCK:
        task = _load(table, partition, seed)
    task.client_indices("0")


def load_task(plan: Plan) -> Task:
    """The plan's task: the same object for all trainers of this process. Raises: UserError."""
    with _LOCK:
        return _load(plan.task, plan.partition, plan.seed)


@lru_cache(maxsize=2)
def _load(table: TaskTable, partition: PartitionTable, seed: int) -> Task:
    return _task_class(table.name).of(table, partition, seed)


def _task_class(name: str) -> type[Task]:
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}: use one of {', '.join(sorted(TASKS))}")
    return TASKS[name]
