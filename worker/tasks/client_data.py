"""Examples of several clients in one place, and whose each is: what data helpers give a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluffle.schemas import UserError
from fluffle.worker.tasks.task import Examples

#: Whether others read data of their own for the same model.
_AMONG_SITES: ContextVar[bool] = ContextVar("among_sites", default=False)


@contextmanager
def among_sites(there: bool = True) -> Iterator[None]:
    """Within, what files here happen to have may not decide what a number means."""
    token = _AMONG_SITES.set(there)
    try:
        yield
    finally:
        _AMONG_SITES.reset(token)


def check_declared(what: str, example: str, given: object, source: object) -> None:
    """Raises: UserError where the task has to say what each site would find otherwise by itself."""
    if given is None and _AMONG_SITES.get():
        raise UserError(
            f"{source}: another site's file may have other {what}, or another order, and nobody "
            f"would notice: give {example} in the task file, the same at every site"
        )


@dataclass(frozen=True, slots=True, eq=False)
class ClientData:
    """Examples, and whose each is.

    ``Task.dataset`` gives ``examples``, ``Task.owners`` gives ``owners``: with partition kind
    ``natural`` client k then has what ``clients[k]`` has.
    """

    #: Inputs and targets, shapes (examples, …).
    x: NDArray[Any]
    y: NDArray[Any]
    #: Whose each example is, shape (examples,): 0 to N - 1. None where nobody's.
    owners: NDArray[Any] | None = None
    #: What the owners are called, in their order.
    clients: tuple[str, ...] = ()
    #: What the classes are called, in their order; () where ``y`` came as numbers.
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        clients: Mapping[str, tuple[ArrayLike, ArrayLike]],
        classes: tuple[str, ...] = (),
    ) -> ClientData:
        """Arrays (x, y) by client. Raises: UserError where they do not fit each other."""
        if not clients:
            raise UserError("there are no clients in these data")
        parts = {name: Examples(np.asarray(x), np.asarray(y)) for name, (x, y) in clients.items()}
        first, (xs, ys) = next(iter(parts)), next(iter(parts.values()))
        for name, (x, y) in parts.items():
            _check(name, x, y)
            for what, mine, others in (("x", x, xs), ("y", y, ys)):
                if mine.shape[1:] != others.shape[1:]:
                    raise UserError(
                        f"{name}: an example's {what} has shape {mine.shape[1:]}, {first}'s has "
                        f"{others.shape[1:]}"
                    )
        sizes = [len(part.y) for part in parts.values()]
        return cls(
            np.concatenate([part.x for part in parts.values()]),
            np.concatenate([part.y for part in parts.values()]),
            np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
            tuple(map(str, parts)),
            classes,
        )

    @classmethod
    def by_name(
        cls,
        x: NDArray[Any],
        y: NDArray[Any],
        whose: NDArray[Any] | None,
        source: str,
        classes: tuple[str, ...] = (),
    ) -> ClientData:
        """Arrays, with the name of each example's client, shape (examples,), where it has one.

        source: what to call them in an error. Raises: UserError where they do not fit each other.
        """
        _check(source, x, y)
        if whose is None:
            return cls(x, y, classes=classes)
        if whose.shape != (len(y),):
            raise UserError(f"{source}: {len(y)} examples, and clients of shape {whose.shape}")
        names, owners = np.unique(whose, return_inverse=True)
        order = sorted(range(len(names)), key=lambda i: in_order(str(names[i])))
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return cls(x, y, place[owners], tuple(str(names[i]) for i in order), classes)

    @property
    def examples(self) -> Examples:
        """What ``Task.dataset`` and ``Task.test`` give."""
        return Examples(self.x, self.y)

    def split(self, test: float, seed: int = 0) -> tuple[ClientData, ClientData]:
        """(the rest, a share ``test`` in (0, 1) of each client's examples), drawn at random.

        A client keeps one example at least. Raises: UserError.
        """
        if not 0 < test < 1:
            raise UserError(f"split(test={test}): a share is above 0 and below 1")
        owners = np.zeros(len(self.y), np.int32) if self.owners is None else self.owners
        # In a random order within each client: the first share of each is held out.
        order = np.random.default_rng(seed).permutation(len(owners))
        order = order[np.argsort(owners[order], kind="stable")]
        _, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(starts, counts)
        held_out = np.zeros(len(order), bool)
        held_out[order] = place < np.repeat(np.minimum(np.rint(counts * test), counts - 1), counts)
        return self._only(~held_out), self._only(held_out)

    def _only(self, chosen: NDArray[np.bool_]) -> ClientData:
        owners = None if self.owners is None else self.owners[chosen]
        return ClientData(self.x[chosen], self.y[chosen], owners, self.clients, self.classes)


def _check(name: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    for what, array in (("x", x), ("y", y)):
        if array.dtype.hasobject or not array.ndim:
            raise UserError(f"{name}: {what} is no array of numbers or of text")
    if len(x) != len(y):
        raise UserError(f"{name}: {len(x)} examples in x and {len(y)} in y")


def in_order(name: str) -> list[tuple[int, str]]:
    """Sorts names that have numbers in them as people do: site-2 before site-10."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def numbered(
    words: NDArray[Any], classes: Sequence[str] | None, source: str
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """The class of each word, and the classes: those given, in that order, else the words sorted.

    Sites that read data of their own have to give them: a number means the same at all of them.
    Raises: UserError for a word that is none of them, or a class that stands twice.
    """
    check_declared("classes", 'classes=["mild", "severe"]', classes, source)
    names, y = np.unique(words, return_inverse=True)
    if classes is None:
        return y.astype(np.int32), tuple(names.tolist())
    given = tuple(map(str, classes))
    if len(set(given)) < len(given):
        raise UserError(f"{source}: classes= names one twice")
    for name in names.tolist():
        if name not in given:
            raise UserError(f"{source} has the class {name!r}, which is none of {', '.join(given)}")
    places = np.array([given.index(name) for name in names.tolist()], np.int32)
    return places[y], given
