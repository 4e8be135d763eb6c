"""Metrics by client: who is worst off with the global model, and how far clients lie apart.

A client is measured on test examples alone, which no client trains on. Where these have owners
(``Task.test_owners``, partition ``natural``) they are the client's own. Else they are all of them,
weighted so that each label is as frequent as among the client's training examples: what a test set
drawn like the client's data would give on average, without the noise of a small one, and at the
price of one more pass over the test set for any number of clients.

Summaries travel, not clients: the worst, the worst tenth's border, mean and standard deviation, as
the literature on fairness reports them (q-FFL, Li et al. 2020, arXiv 1905.10497, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.schemas.spread import MEASURES, spread
from fluffle.worker.tasks.structure import labels_of
from fluffle.worker.tasks.task import Task, examples_of

#: More clients than this are sampled, by the run's seed.
MOST_CLIENTS = 1000
#: Keeps this draw apart from everything else that is drawn from the experiment's seed.
_STREAM = 0x6279

Indices = NDArray[np.int32]
Measure = Callable[[Indices], Mapping[str, float]]


class ByClient:
    """Groups of test examples, and how much each group counts for each client."""

    def __init__(self, task: Task, test_indices: Indices, only: int | None = None) -> None:
        """``test_indices``: which test examples are used; ``only``: of this client alone.

        Raises: UserError.
        """
        clients = np.arange(task.clients) if only is None else np.array([only])
        if only is None and task.clients > MOST_CLIENTS:
            rng = np.random.default_rng([task.seed, _STREAM])
            clients = np.sort(rng.choice(clients, MOST_CLIENTS, replace=False))
        owners = task.test_owners() if task.partition.kind == "natural" else None
        groups, weights = (
            _by_label(task, clients, test_indices)
            if owners is None
            else _by_owner(np.asarray(owners)[test_indices], _people(task, clients), test_indices)
        )
        known = weights.sum(axis=1) > 0
        if not known.any():
            raise UserError("evaluation.by_client: no client has test examples of its own")
        #: Indices of test examples, each group's.
        self.groups: list[Indices] = groups
        #: Shape (clients with test examples, groups); rows sum to 1.
        self.weights = weights[known] / weights[known].sum(axis=1, keepdims=True)

    def measure(self, measure: Measure) -> dict[str, float]:
        """The summaries; ``measure`` gives the metrics over some test examples."""
        measured = [measure(group) for group in self.groups]
        found: dict[str, float] = {}
        for name in MEASURES:
            if all(name in metrics for metrics in measured):
                values = self.weights @ np.array([metrics[name] for metrics in measured])
                found |= spread(name, values, "client_")
        return found


def _people(task: Task, clients: NDArray[np.integer]) -> NDArray[Any]:
    """The owner that each client trains on: where one has no example in ``dataset()``, as after a
    split, those after it are clients of a lower number.
    """
    owners = task.owners()
    return clients if owners is None else np.unique(np.asarray(owners))[clients]


def _by_owner(
    owners: NDArray[Any], people: NDArray[Any], test_indices: Indices
) -> tuple[list[Indices], NDArray[np.float64]]:
    there = [person for person in people if (owners == person).any()]
    return [test_indices[owners == person] for person in there], np.eye(len(there))


def _by_label(
    task: Task, clients: NDArray[np.integer], test_indices: Indices
) -> tuple[list[Indices], NDArray[np.float64]]:
    trained, tested = (labels_of(examples_of(task, part).y) for part in ("dataset", "test"))
    if trained is None or tested is None or trained.dtype.kind not in "iub":
        raise UserError(
            "evaluation.by_client needs one label for each example, or test examples that have "
            "owners (test_owners() of a task, with partition.kind = 'natural'): here is neither"
        )
    tested = tested[test_indices]
    labels = np.unique(tested)
    groups = [test_indices[tested == label] for label in labels]
    weights = np.zeros((len(clients), len(labels)))
    for row, client in enumerate(clients):
        own = trained[task.client_indices(str(client))]
        weights[row] = (own[:, None] == labels).sum(axis=0)
    return groups, weights
