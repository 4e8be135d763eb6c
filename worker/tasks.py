"""The tasks that come with Fluffle."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from schemas import Plan, UserError
from schemas.experiment import PartitionTable, TaskTable
from worker.datasets import Dataset, Progress, fetch, load
from worker.task import Examples, Task

if TYPE_CHECKING:
    import keras


class _Mnist(Task):
    """Handwritten digits: 60,000 images of 28 x 28, and 10,000 to test."""

    @classmethod
    def prepare(cls, progress: Progress) -> None:
        fetch("mnist", progress)

    def dataset(self) -> Examples:
        data = _mnist()
        return Examples(data.x_train, data.y_train)

    def test(self) -> Examples:
        data = _mnist()
        return Examples(data.x_test, data.y_test)

    def preprocess(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.cast(x, tf.float32) * (1 / 255)


class MnistMlp(_Mnist):
    """One hidden layer of 128 units with dropout."""

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dropout(0.2),
                layers.Dense(10, activation="softmax"),
            ]
        )


class MnistCnn(_Mnist):
    """The CNN of McMahan et al. 2017 (arXiv 1602.05629), section 3: 1,663,370 parameters."""

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Reshape((28, 28, 1)),
                layers.Conv2D(32, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(64, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(512, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )


TASKS: dict[str, type[Task]] = {"mnist-mlp": MnistMlp, "mnist-cnn": MnistCnn}

_LOCK = threading.Lock()


def prepare(name: str, progress: Progress) -> None:
    """Fetch what a task needs, before anybody waits for it. Raises: UserError."""
    _task_class(name).prepare(progress)


def load_task(plan: Plan) -> Task:
    """The plan's task: the same object for all trainers of this process. Raises: UserError."""
    with _LOCK:
        return _load(plan.task, plan.partition, plan.seed)


@lru_cache(maxsize=2)
def _load(table: TaskTable, partition: PartitionTable, seed: int) -> Task:
    return _task_class(table.name)(table.clients, partition, seed)


def _task_class(name: str) -> type[Task]:
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}: use one of {', '.join(sorted(TASKS))}")
    return TASKS[name]


@lru_cache(maxsize=1)
def _mnist() -> Dataset:
    return load("mnist")
