"""Partitions: which examples each client holds.

Every partition is a pure function of the table, the labels, the number of clients and the seed (or
of the data's own owners). Without a cap every example belongs to exactly one client; a natural
partition among fewer clients than owners leaves the other owners' examples out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.custom_partition import custom_partition
from fluffle.worker.tasks.structure import count_of, labels_of

Indices = NDArray[np.int32]
Parts = list[NDArray[Any]]

#: Keeps these draws apart from everything else that is drawn from the experiment's seed.
_STREAM = 0x7061
_HELD_OUT = 0x7661

_BY_LABEL = ("shards", "dirichlet", "dirichlet-by-class", "labels", "similarity")
#: dirichlet-by-class, quantity: so many draws may leave a client with too few examples.
_DRAWS = 1000


def partition(
    table: PartitionTable,
    labels: ArrayLike,
    clients: int,
    seed: int,
    owners: ArrayLike | None = None,
) -> list[Indices]:
    """For each client the indices of its examples.

    ``labels`` has the class of every example, as a number, in a column of its own or one-hot, or
    is something of any shape (examples, …) where the kind asks for no label. ``owners`` says whose
    each example is, shape (examples,); None where nobody's. Raises: UserError if the data cannot be
    split like that.
    """
    own = labels_of(labels)
    _check(table, count_of(labels), own, clients)
    targets = np.zeros(0) if own is None else own
    examples = count_of(labels)
    rng = np.random.default_rng([seed, _STREAM])
    parts: Parts
    if table.kind == "contiguous":
        parts = _equal(np.arange(examples, dtype=np.int32), clients)
    elif table.kind == "iid":
        parts = _equal(rng.permutation(examples), clients)
    elif table.kind == "shards":
        parts = _shards(targets, clients, table.shards_per_client, rng)
    elif table.kind == "dirichlet":
        parts = _dirichlet(targets, clients, table.alpha, rng)
    elif table.kind == "dirichlet-by-class":
        least = 10 if table.min_examples is None else table.min_examples
        parts = _dirichlet_by_class(targets, clients, table.alpha, least, rng)
    elif table.kind == "labels":
        each = 2 if table.labels_per_client is None else table.labels_per_client
        parts = _labels(targets, clients, each, rng)
    elif table.kind == "quantity":
        least = 10 if table.min_examples is None else table.min_examples
        parts = _quantity(examples, clients, table.alpha, least, rng)
    elif table.kind == "power-law":
        exponent = 1.0 if table.exponent is None else table.exponent
        parts = _power_law(examples, clients, exponent, rng)
    elif table.kind == "similarity":
        similarity = 10.0 if table.similarity is None else table.similarity
        parts = _similarity(targets, clients, similarity, rng)
    elif table.kind == "natural":
        parts = _natural(owners, clients)
    else:
        parts = custom_partition(table, targets, clients, rng, owners)
    return [part[: table.examples_per_client].astype(np.int32) for part in parts]


def held_out(
    examples: int, share: float, seed: int, owners: NDArray[Any] | None = None
) -> NDArray[np.int32]:
    """The validation part: this share of each owner's examples, or of all, in the data's order.

    It is rounded down, so that nobody loses an only example.
    """
    whose = np.zeros(examples, np.int8) if owners is None else np.asarray(owners)
    order = np.random.default_rng([seed, _HELD_OUT]).permutation(examples)
    order = order[np.argsort(whose[order], kind="stable")]
    _, starts, counts = np.unique(whose[order], return_index=True, return_counts=True)
    place = np.arange(examples) - np.repeat(starts, counts)
    chosen = order[place < np.repeat(np.floor(counts * share + 1e-9), counts)]
    return np.sort(chosen).astype(np.int32)


def _check(
    table: PartitionTable, examples: int, targets: NDArray[Any] | None, clients: int
) -> None:
    wanted = clients * (table.shards_per_client if table.kind == "shards" else 1)
    if wanted > examples:
        shards = f" with {table.shards_per_client} shards each" if table.kind == "shards" else ""
        raise UserError(
            f"{clients} clients{shards} need at least {wanted} examples, there are "
            f"{examples}: lower task.clients"
        )
    if table.kind in _BY_LABEL and targets is None:
        raise UserError(
            f"partition.kind = '{table.kind}' sorts examples by label, and these have more than "
            "one each: use natural, contiguous, iid or power-law"
        )


def _equal(order: NDArray[np.integer], parts: int) -> Parts:
    """Part k is order[k n / parts : (k + 1) n / parts]: sizes differ by one at most."""
    cuts = [k * len(order) // parts for k in range(parts + 1)]
    return [order[a:b] for a, b in pairwise(cuts)]


def _shards(
    labels: NDArray[np.generic], clients: int, each: int, rng: np.random.Generator
) -> Parts:
    """McMahan et al. 2017 (arXiv 1602.05629), section 3: sort by label, deal out equal shards."""
    shards = _equal(np.argsort(labels, kind="stable"), clients * each)
    dealt = rng.permutation(len(shards)).reshape(clients, each)
    # Shuffled within the client, so that a cap keeps a fair draw of its shards.
    return [rng.permutation(np.concatenate([shards[s] for s in own])) for own in dealt]


def _dirichlet(
    labels: NDArray[np.generic], clients: int, alpha: float, rng: np.random.Generator
) -> Parts:
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


def _dirichlet_by_class(
    labels: NDArray[np.generic], clients: int, alpha: float, least: int, rng: np.random.Generator
) -> Parts:
    """Li et al. 2022 (NIID-Bench, arXiv 2102.02079), section 4.1: class by class, p_c ~ Dir(alpha).

    A class is cut into shares of p_c, one for each client, so that sizes differ, too. As in the
    authors' code a client that has n / N examples gets none of the classes after, and all is drawn
    again until everybody has ``least``. Raises: UserError if that does not come.
    """
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(_DRAWS):
        sizes, cuts = np.zeros(clients, np.int64), []
        for members in by_class:
            # Not below what a gamma variate can be drawn for.
            p = rng.dirichlet(np.full(clients, max(alpha, 1e-6))) * (sizes * clients < len(labels))
            if not p.sum() > 0:  # all on those who have their share: as if it said nothing
                p = (sizes * clients < len(labels)).astype(float)
            ends = np.cumsum(p)
            cuts.append(np.floor(ends[:-1] / ends[-1] * len(members)).astype(np.int64))
            sizes += np.diff(cuts[-1], prepend=0, append=len(members))
        if sizes.min() >= least:
            shares = [
                np.split(rng.permutation(m), cut) for m, cut in zip(by_class, cuts, strict=True)
            ]
            return [rng.permutation(np.concatenate(own)) for own in zip(*shares, strict=True)]
    raise UserError(
        f"partition.kind = 'dirichlet-by-class': with alpha = {alpha:g} {_DRAWS} draws leave one "
        f"of {clients} clients with fewer than {least} examples: raise partition.alpha, or lower "
        "partition.min_examples or task.clients"
    )


def _labels(
    labels: NDArray[np.generic], clients: int, each: int, rng: np.random.Generator
) -> Parts:
    """Li et al. 2022 (NIID-Bench, arXiv 2102.02079), section 4.1, #C = ``each``.

    As in the authors' code client i has class i modulo their number and others at random; who has a
    class divides it evenly. Raises: UserError where a class would be nobody's, or there are fewer.
    """
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    count = len(by_class)
    if each > count or clients < count:
        raise UserError(
            f"partition.kind = 'labels': {clients} clients with {each} of {count} classes each: "
            f"it needs at least {count} clients, and at most {count} classes each"
        )
    owned: list[list[int]] = [[] for _ in by_class]
    for client in range(clients):
        first = client % count
        others = rng.permutation(np.delete(np.arange(count), first))[: each - 1]
        for chosen in (first, *others):
            owned[chosen].append(client)
    dealt: list[list[NDArray[Any]]] = [[] for _ in range(clients)]
    for members, holders in zip(by_class, owned, strict=True):
        if len(holders) > len(members):
            raise UserError(
                f"partition.kind = 'labels': {len(holders)} clients would divide a class of "
                f"{len(members)} examples: lower task.clients or partition.labels_per_client"
            )
        for client, part in zip(holders, _equal(members, len(holders)), strict=True):
            dealt[client].append(part)
    return [rng.permutation(np.concatenate(own)) for own in dealt]


def _quantity(
    examples: int, clients: int, alpha: float, least: int, rng: np.random.Generator
) -> Parts:
    """Iid examples, sizes n Dir(alpha): Li et al. 2022 (NIID-Bench, arXiv 2102.02079), section 4.1.

    Drawn again until everybody has ``least``. Raises: UserError if that does not come.
    """
    for _ in range(_DRAWS):
        # Not below what a gamma variate can be drawn for.
        ends = np.cumsum(rng.dirichlet(np.full(clients, max(alpha, 1e-6))))
        cuts = np.floor(ends[:-1] * examples).astype(np.int64)
        if np.diff(cuts, prepend=0, append=examples).min() >= least:
            return np.split(rng.permutation(examples), cuts)
    raise UserError(
        f"partition.kind = 'quantity': with alpha = {alpha:g} {_DRAWS} draws leave one of "
        f"{clients} clients with fewer than {least} examples: raise partition.alpha, or lower "
        "partition.min_examples or task.clients"
    )


def _power_law(examples: int, clients: int, exponent: float, rng: np.random.Generator) -> Parts:
    """Iid examples, unequal sizes: n_k = 1 + (n - clients) p_k with p_k ~ (k + 1)^-exponent.

    Li et al. 2020 (arXiv 1812.06127), section 5.1, has the number of examples per device follow a
    power law; the form is Zipf's. n_k is rounded so that nothing is left.
    """
    p = np.arange(1, clients + 1) ** -exponent
    spare = np.rint(np.cumsum(p) / p.sum() * (examples - clients)).astype(int)
    ends = spare + np.arange(1, clients + 1)
    return np.split(rng.permutation(examples), ends[:-1])


def _similarity(
    labels: NDArray[np.generic], clients: int, percent: float, rng: np.random.Generator
) -> Parts:
    """Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378), section 7.

    Clients have equally many examples. ``percent`` of each one's are iid; the rest of all is sorted
    by label and dealt out in one stretch for each client.
    """
    order = rng.permutation(len(labels))
    sizes = np.array([len(part) for part in _equal(order, clients)])
    shared = np.floor(sizes * (percent / 100) + 0.5).astype(int)
    iid, rest = np.split(order, [shared.sum()])
    rest = rest[np.argsort(labels[rest], kind="stable")]
    pairs = zip(
        np.split(iid, np.cumsum(shared)[:-1]),
        np.split(rest, np.cumsum(sizes - shared)[:-1]),
        strict=True,
    )
    return [rng.permutation(np.concatenate(pair)) for pair in pairs]


def _natural(owners: ArrayLike | None, clients: int) -> Parts:
    """Client k holds what the data's owner k holds, in the order of the data."""
    if owners is None:
        raise UserError(
            "partition.kind = 'natural': this data belongs to nobody in particular; use another "
            "kind, as iid or dirichlet"
        )
    people, counts = np.unique(np.asarray(owners), return_counts=True)
    if clients > len(people):
        raise UserError(
            f"{clients} clients are more than the data's {len(people)} owners: lower task.clients"
        )
    mine = np.argsort(np.asarray(owners), kind="stable")
    return np.split(mine, np.cumsum(counts)[:-1])[:clients]
