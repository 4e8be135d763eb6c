"""Tasks on a data set that is fetched once and then mapped from the cache."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from numpy.typing import NDArray

from fluffle.worker.datasets import Dataset, Progress, fetch, load
from fluffle.worker.tasks.task import Examples, Task


class StoredTask(Task):
    """A task on one of ``fluffle.worker.datasets``. A subclass adds the model."""

    #: The data set's name.
    data: ClassVar[str]

    @classmethod
    def prepare(cls, progress: Progress) -> None:
        fetch(cls.data, progress)

    def dataset(self) -> Examples:
        data = _mapped(self.data)
        return Examples(data.x_train, data.y_train)

    def test(self) -> Examples:
        data = _mapped(self.data)
        return Examples(data.x_test, data.y_test)

    def owners(self) -> NDArray[Any] | None:
        return _mapped(self.data).owner_train


@cache
def _mapped(name: str) -> Dataset:
    return load(name)
