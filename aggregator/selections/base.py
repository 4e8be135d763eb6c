"""A selection: who trains next, given who may, and what came of the turns before.

A choice is a function of the run's seed, the turn and what the closed versions count, and of who
may be chosen at the moment. What a selection remembers it learns from ``observe`` alone, which is
told of every closed version in order: a restart tells it of all of them again, from the ledger. So
a crash changes no choice, and the cohort of a version is the same one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from fluffle.schemas import Experiment

#: Keeps these draws apart from others made from the same seed.
SALT = 0x5E1EC7


@dataclass(frozen=True, slots=True)
class Counted:
    """An update that a closed version counts."""

    client: str
    #: The version that counts it, and the one that it was trained from.
    version: int
    base_version: int
    examples: int
    #: What the client measured while it trained: "loss", and whatever else.
    metrics: Mapping[str, float]
    #: Seconds that the turn took its client.
    duration_s: float


@dataclass(frozen=True)
class Moment:
    """One choice that is to be made."""

    seed: int
    #: The turn that the first of those chosen gets; no other choice has it.
    turn: int
    #: The newest version.
    version: int
    #: How many pooled clients there are: "0", "1", …
    clients: int
    #: Whether those chosen are a version's cohort; else each is chosen for itself.
    together: bool
    #: Whether a client may be chosen: it is there, is not at work, and is nobody's replacement.
    may: Callable[[str], bool]
    #: Who is in the open buffer.
    in_buffer: Collection[str] = ()

    @cached_property
    def candidates(self) -> list[str]:
        """All who may be chosen, in client order. Takes a look at every client."""
        return [name for name in map(str, range(self.clients)) if self.may(name)]

    def generator(self, *key: int) -> np.random.Generator:
        """The generator of this choice; with a key another one, independent of it."""
        return np.random.default_rng([SALT, self.seed, self.turn, *key])


class Selection:
    """Who trains next. A subclass says ``choose``, and ``observe`` where it learns.

    In turn, as a toy:

    >>> class InTurn(Selection):
    ...     def choose(self, moment, size):
    ...         first = moment.turn % moment.clients
    ...         order = [str((first + i) % moment.clients) for i in range(moment.clients)]
    ...         return [client for client in order if moment.may(client)][:size]
    >>> moment = Moment(42, turn=7, version=0, clients=3, together=True, may=lambda c: c != "1")
    >>> InTurn().choose(moment, 2)
    ['2', '0']
    """

    def choose(self, moment: Moment, size: int) -> Sequence[str]:
        """Up to ``size`` different clients that may be chosen; fewer where there are none.

        Changes nothing: same moment, same choice.
        """
        raise NotImplementedError

    def observe(self, version: int, counted: Sequence[Counted]) -> None:
        """This version has been made of these, in the order of arrival; sites are among them."""

    def admits(self, client: str, version: int, in_buffer: Collection[str]) -> bool:
        """Whether an update of this client may count in this version, which is the next one.

        in_buffer: who counts in it already.
        """
        return True

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where the selection does not go with the rest of the experiment."""


def learns(selection: Selection) -> bool:
    """Whether it wants to know what versions count."""
    return type(selection).observe is not Selection.observe


def loss_of(update: Counted, whose: str) -> float:
    """The mean loss of its training. Raises: UserError where its client says none."""
    loss = update.metrics.get("loss")
    if loss is None:
        raise UserError(
            f"{whose} chooses by the loss that clients measure while they train, and client "
            f"{update.client} says none: return a metric 'loss', or choose another "
            "participation.selection"
        )
    return loss
