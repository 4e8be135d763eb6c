"""A task of any framework: weights are NumPy arrays, and its own code trains them.

A toy, whose clients pull the mean of all towards their own::

    class Means(fluffle.ArrayTask):
        def weights(self):
            return {"mean": np.zeros(3, np.float32)}

        def train(self, weights, client, rng, state):
            mine = rng.normal(int(client), 1, (100, 3))
            return {"mean": mine.mean(axis=0)}, 100, {"loss": float(mine.var())}, {}

        def evaluate(self, weights):
            return {"loss": float(np.square(weights["mean"] - 4.5).mean())}

Nothing of TensorFlow is imported in a process that works for such a task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import TrainingTable
from fluffle.worker.tasks.task import Examples, Task

if TYPE_CHECKING:
    import keras

#: Named arrays: letters, digits, ``_``, ``.`` and ``-`` in a name.
Arrays = Mapping[str, NDArray[Any]]


class ArrayTask(Task):
    """What is learned, and how: arrays in, arrays out. Shared by a process's threads.

    ``dataset()`` is optional: where it is there, ``self.client_indices(client)`` are a client's
    examples of it, by the experiment's partition. ``--clock virtual`` needs to know how many these
    are, from ``dataset()`` or a ``client_indices`` of its own.
    """

    holds_out = False  # evaluate() measures what it wants
    #: The experiment's ``[training]``: epochs, batch_size, learning_rate, to be read by ``train``.
    training: TrainingTable

    @abstractmethod
    def weights(self) -> Arrays:
        """Version 0: a function of ``self.seed`` alone.

        Floating-point arrays travel as deltas where the strategy wants such; others as values.
        """

    @abstractmethod
    def train(
        self, weights: dict[str, Any], client: str, rng: np.random.Generator, state: Arrays | None
    ) -> tuple[Arrays, int, Mapping[str, float], Arrays | None]:
        """One client's local training.

        weights: the global model, to be changed at will. rng: seeded for this turn.
        state: what the client kept from its last turn: empty at first, None where it is lost.
        Returns: the local weights; how many examples they were trained on; the loss and metrics;
        what the client keeps, which needs ``training.keep_state = true`` where it is anything.
        """

    @abstractmethod
    def evaluate(self, weights: dict[str, Any]) -> Mapping[str, float]:
        """The loss and metrics of a model on test examples."""

    def dataset(self) -> Examples:
        """The training examples of all clients, if they are arrays. Raises: UserError if not."""
        raise UserError(
            f"{type(self).__name__} has no dataset(): a partition and --clock virtual ask how many "
            "examples a client has; give it one, or a client_indices(client)"
        )

    def test(self) -> Examples:
        """What ``evaluate`` measures on, if it is arrays. Raises: UserError if not."""
        raise UserError(f"{type(self).__name__} has no test()")

    def model(self) -> keras.Model:
        """Raises: UserError: there is none."""
        raise UserError("an ArrayTask has no Keras model: export its arrays (--format npz)")
