"""A partition of one's own: a class in a file beside the experiment, or of an installed package."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.schemas.extensions import PARTITION, check_verbs, told


class Partition(Protocol):
    """Which examples each client holds; made with ``[partition.parameters]``.

    >>> class Halves:
    ...     def split(self, labels, clients, rng, owners):
    ...         return np.array_split(np.arange(len(labels) // 2), clients)
    >>> [part.tolist() for part in Halves().split(np.zeros(8), 2, np.random.default_rng(0), None)]
    [[0, 1], [2, 3]]
    """

    def split(
        self,
        labels: NDArray[Any],
        clients: int,
        rng: np.random.Generator,
        owners: ArrayLike | None,
    ) -> list[NDArray[Any]]:
        """For each of the ``clients`` the indices of its examples, nobody's none.

        ``labels`` has the target of every example; ``owners`` says whose each is, None where
        nobody's. Randomness comes from ``rng`` alone: every worker has to split the same.
        """
        ...


def custom_partition(
    table: PartitionTable,
    labels: NDArray[Any],
    clients: int,
    rng: np.random.Generator,
    owners: ArrayLike | None,
) -> list[NDArray[Any]]:
    """What the partition that a table names makes of the data. Raises: UserError."""
    name = table.kind
    made = PARTITION.make(name, table.parameters)
    check_verbs("the partition", name, made, ("split",))
    try:
        parts = [np.asarray(part) for part in made.split(labels, clients, rng, owners)]
    except Exception as error:
        raise UserError(f"the partition {name} failed: {told(error, made)}") from error
    if len(parts) != clients:
        raise UserError(f"the partition {name} made {len(parts)} parts for {clients} clients")
    for client, part in enumerate(parts):
        if part.ndim != 1 or part.dtype.kind not in "iu" or not part.size:
            raise UserError(f"the partition {name} gives client {client} no list of indices")
        if part.min() < 0 or part.max() >= len(labels):
            raise UserError(
                f"the partition {name} gives client {client} an example that is not there: there "
                f"are {len(labels)}"
            )
    return parts
