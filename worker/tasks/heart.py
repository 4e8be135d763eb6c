"""Heart disease in four hospitals: FLamby's Fed-Heart-Disease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fluffle.worker.datasets import Dataset, load
from fluffle.worker.tasks.stored import StoredTask
from fluffle.worker.tasks.task import Examples

if TYPE_CHECKING:
    import keras


class HeartLr(StoredTask):
    """Logistic regression on 13 numbers, as FLamby has it (arXiv 2210.04620 and its code).

    Each hospital standardises its patients by its own training part, as it can without telling
    anybody: x has mean 0 and standard deviation 1 there. What is always the same there is 0.
    """

    data = "fed-heart"
    loss = "binary_crossentropy"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        # As PyTorch begins a linear layer: 1,500 steps of 0.001 do not forget it.
        uniform = [keras.initializers.RandomUniform(-(13**-0.5), 13**-0.5) for _ in range(2)]
        output = layers.Dense(
            1, "sigmoid", kernel_initializer=uniform[0], bias_initializer=uniform[1]
        )
        return keras.Sequential([keras.Input((13,)), output])

    def dataset(self) -> Examples:
        data = self._data
        x, owners = data.x_train, data.owner_train
        return Examples(standardised(x, owners, x, owners), data.y_train)

    def test(self) -> Examples:
        data = self._data
        return Examples(
            standardised(data.x_test, data.owner_test, data.x_train, data.owner_train), data.y_test
        )

    def test_owners(self) -> NDArray[Any] | None:
        return self._data.owner_test

    @property
    def _data(self) -> Dataset:
        return load(self.data)


def standardised(
    x: NDArray[np.float32],
    owners: NDArray[Any] | None,
    known: NDArray[np.float32],
    known_owners: NDArray[Any] | None,
) -> NDArray[np.float32]:
    """x, shape (examples, features), by the mean and the (sample's) standard deviation that its
    owner's examples in ``known`` have; where nobody owns any, by those of all of them.
    """
    if owners is None or known_owners is None:
        owners, known_owners = np.zeros(len(x)), np.zeros(len(known))
    result = np.empty(x.shape, np.float64)
    for owner in np.unique(owners):
        theirs = known[known_owners == owner].astype(np.float64)
        mine = owners == owner
        result[mine] = (x[mine] - theirs.mean(axis=0)) / (theirs.std(axis=0, ddof=1) + 1e-9)
    return result.astype(np.float32)
