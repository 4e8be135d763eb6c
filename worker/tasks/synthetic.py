"""Synthetic(alpha, beta): Li et al. 2020 (FedProx, arXiv 1812.06127), section 5.1."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.worker.datasets import Dataset, synthetic
from fluffle.worker.tasks.task import Examples, Task

if TYPE_CHECKING:
    import keras


class SyntheticLr(Task):
    """Softmax regression on data that is generated from the experiment's seed.

    There are 30 devices, or as many as there are clients if those are more; in a natural partition
    client k is device k, and the devices of nobody are left out of the test, too: each has a model
    of its own, which nobody could have learned.
    """

    def __init__(
        self,
        clients: int,
        partition: PartitionTable,
        seed: int,
        alpha: float = 1.0,
        beta: float = 1.0,
        iid: bool = False,
    ) -> None:
        super().__init__(clients, partition, seed)
        self._kind = alpha, beta, iid

    @classmethod
    def of(cls, table: TaskTable, partition: PartitionTable, seed: int) -> Self:
        alpha = 1.0 if table.synthetic_alpha is None else table.synthetic_alpha
        beta = 1.0 if table.synthetic_beta is None else table.synthetic_beta
        return cls(table.clients, partition, seed, alpha, beta, bool(table.synthetic_iid))

    @cached_property
    def data(self) -> Dataset:
        """All devices' examples."""
        devices = max(synthetic.DEVICES, self.clients)
        return synthetic.generate(*self._kind, devices, self.seed)

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((synthetic.DIMENSION,)),
                layers.Dense(synthetic.CLASSES, activation="softmax"),
            ]
        )

    def dataset(self) -> Examples:
        return Examples(self.data.x_train, self.data.y_train)

    def test(self) -> Examples:
        return Examples(self.data.x_test[self._tested], self.data.y_test[self._tested])

    def owners(self) -> NDArray[Any] | None:
        return self.data.owner_train

    def test_owners(self) -> NDArray[Any] | None:
        return self._test_owners[self._tested]

    @property
    def _test_owners(self) -> NDArray[Any]:
        assert self.data.owner_test is not None, "devices are owners"
        return self.data.owner_test

    @cached_property
    def _tested(self) -> NDArray[np.bool_]:
        """Which test examples count."""
        if self.partition.kind != "natural":
            return np.full(len(self._test_owners), True)
        return self._test_owners < self.clients
