"""Partitions: which examples each client holds.

Every partition is a pure function of the table, the labels, the number of clients and the seed.
Without a cap every example belongs to exactly one client.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas import UserError
from schemas.experiment import PartitionTable

Indices = NDArray[np.int32]

#: Keeps these draws apart from everything else that is drawn from the experiment's seed.
_STREAM = 0x7061


def partition(table: PartitionTable, labels: ArrayLike, clients: int, seed: int) -> list[Indices]:
    """For each client the indices of its examples.

    ``labels`` has the class of every example, shape (examples,). Raises: UserError if there are
    too few examples.
    """
    classes = np.asarray(labels)
    wanted = clients * (table.shards_per_client if table.kind == "shards" else 1)
    if wanted > len(classes):
        shards = f" with {table.shards_per_client} shards each" if table.kind == "shards" else ""
        raise UserError(
            f"{clients} clients{shards} need at least {wanted} examples, there are "
            f"{len(classes)}: lower task.clients"
        )
    rng = np.random.default_rng([seed, _STREAM])
    if table.kind == "contiguous":
        parts = _equal(np.arange(len(classes), dtype=np.int32), clients)
    elif table.kind == "iid":
        parts = _equal(rng.permutation(len(classes)), clients)
    elif table.kind == "shards":
        parts = _shards(classes, clients, table.shards_per_client, rng)
    else:
        parts = _dirichlet(classes, clients, table.alpha, rng)
    return [part[: table.examples_per_client].astype(np.int32) for part in parts]


def _equal(order: NDArray[np.integer], parts: int) -> list[NDArray[np.integer]]:
    """Part k is order[k n / parts : (k + 1) n / parts]: sizes differ by one at most."""
    cuts = [k * len(order) // parts for k in range(parts + 1)]
    return [order[a:b] for a, b in pairwise(cuts)]


def _shards(
    labels: NDArray[np.generic], clients: int, each: int, rng: np.random.Generator
) -> list[NDArray[np.integer]]:
    """McMahan et al. 2017 (arXiv 1602.05629), section 3: sort by label, deal out equal shards."""
    shards = _equal(np.argsort(labels, kind="stable"), clients * each)
    dealt = rng.permutation(len(shards)).reshape(clients, each)
    # Shuffled within the client, so that a cap keeps a fair draw of its shards.
    return [rng.permutation(np.concatenate([shards[s] for s in own])) for own in dealt]


def _dirichlet(
    labels: NDArray[np.generic], clients: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.integer]]:
    """Hsu et al. 2019 (arXiv 1909.06335), section 3: client by client, q ~ Dir(alpha p).

    p is the share of each class in the whole data set, so alpha is the sum of the concentrations
    (not one of them, as some libraries have it). Clients have equally many examples, drawn
    by q without replacement; where a class runs out, q is renormalised over those that are left.
    """
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    left = np.array([len(members) for members in by_class])
    # Not below what a gamma variate can be drawn for.
    concentration = np.maximum(alpha * left / left.sum(), 1e-6)
    parts = []
    for size in (len(part) for part in _equal(np.arange(len(labels)), clients)):
        counts = _draw(rng.dirichlet(concentration), left, size, rng)
        left -= counts
        taken = [members[n : n + k] for members, n, k in zip(by_class, left, counts, strict=True)]
        parts.append(rng.permutation(np.concatenate(taken)))
    return parts


def _draw(
    q: NDArray[np.float64], left: NDArray[np.int_], size: int, rng: np.random.Generator
) -> NDArray[np.int_]:
    """How many of each class: ``size`` draws by ``q``, never more than are left of a class.

    The draws that hit an empty class are drawn again among the others, which is what drawing one
    by one comes to.
    """
    counts = np.zeros_like(left)
    while missing := size - counts.sum():
        room = left - counts
        open_q = np.where(room > 0, q, 0)
        if open_q.sum() <= 0:  # q has nothing on what is left: as if it said nothing
            open_q = room.astype(float)
        counts += np.minimum(rng.multinomial(missing, open_q / open_q.sum()), room)
    return counts
