"""The selector: the run's selection, who is there, and what it has seen so far."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar

import numpy as np

from fluffle.aggregator.coordinator.effects import Fold
from fluffle.aggregator.mechanisms.noise import uniforms
from fluffle.aggregator.selections.base import Counted, Moment, Selection, learns
from fluffle.aggregator.selections.registry import make_selection
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.extensions import guarded

#: (client, now) -> the first time from now on at which the client is there, by the caller's clock.
Arrival = Callable[[str, float], float]

NEVER = float("inf")
T = TypeVar("T")


def sample_cohort(key: bytes, version: int, clients: int, rate: float) -> list[str]:
    """Each client by itself with this probability (Poisson sampling), in client order.

    A function of the key, which is a secret, and of the version: a restart draws the same.
    """
    drawn = uniforms(key, f"cohort:{version}", clients)
    return [str(client) for client in np.flatnonzero(drawn < rate)]


class Selector:
    """Chooses among the clients that are there and not taken."""

    def __init__(
        self,
        experiment: Experiment,
        selection: Selection | None = None,
        arrival: Arrival | None = None,
        duration: Callable[[Fold], float] = lambda fold: fold.train_s,
    ) -> None:
        """
        selection: by default the experiment's.
        arrival: when clients are there; None where nobody knows: then all always are.
        duration: what a turn took its client, in seconds.
        """
        self._selection = selection or make_selection(experiment)
        self._seed = experiment.experiment.seed
        self._clients = experiment.task.clients
        # Whose bytes are to be the same on any transport asks no clock.
        chooses = (
            experiment.participation.only_available and not experiment.aggregation.deterministic
        )
        self._arrival = arrival if chooses else None
        self._duration = duration
        #: Nobody who was looked for will be there before this; the past where somebody may be.
        self._nobody_until = -NEVER
        #: Who was not looked for then, and is not taken any more.
        self._freed: list[str] = []

    @property
    def next_arrival(self) -> float:
        """When the next comes, after a choice that found too few; infinity where nobody knows."""
        return NEVER if self._arrival is None else self._nobody_until

    @property
    def learns(self) -> bool:
        """Whether the selection wants to know what versions count."""
        return learns(self._selection)

    def observe(self, version: int, folds: Iterable[Fold]) -> None:
        """This version counts these."""
        self._nobody_until = -NEVER
        if self.learns:
            counted = [self._counted(version, fold) for fold in folds if fold.turn > 0]
            self._guarded(lambda: self._selection.observe(version, counted))

    def admits(self, client: str, version: int, in_buffer: set[str]) -> bool:
        """Whether an update of this client may count in this version, which is the next one."""
        return self._guarded(lambda: self._selection.admits(client, version, in_buffer))

    def choose(
        self,
        turn: int,
        version: int,
        size: int,
        now: float,
        *,
        taken: Container[str],
        in_buffer: set[str],
        together: bool = False,
    ) -> list[str]:
        """Up to ``size`` clients that are there and not taken; none before ``next_arrival``."""
        self.wait_for(self._freed, now)
        self._freed.clear()
        if now < self._nobody_until:
            return []

        def may(client: str) -> bool:
            return client not in taken and self.is_there(client, now)

        moment = Moment(self._seed, turn, version, self._clients, together, may, in_buffer)
        chosen = list(self._guarded(lambda: self._selection.choose(moment, size)))
        self._check(chosen, size, may)
        if len(chosen) < size and self._arrival is not None:
            others = (str(c) for c in range(self._clients) if str(c) not in taken)
            times = (self._arrival(c, now) for c in others)
            # Some may be there whom the selection does not want now: a version changes its mind.
            self._nobody_until = min((at for at in times if at > now), default=NEVER)
        return chosen

    def is_there(self, client: str, now: float) -> bool:
        """Whether the client is there, as far as anybody knows."""
        return self._arrival is None or self._arrival(client, now) <= now

    def freed(self, client: str) -> None:
        """A client that was taken is not any more."""
        if self._arrival is not None:
            self._freed.append(client)

    def wait_for(self, clients: Iterable[str], now: float) -> None:
        """Look for these too."""
        if self._arrival is not None:
            times = (self._arrival(client, now) for client in clients)
            self._nobody_until = min(self._nobody_until, *times, NEVER)

    def _counted(self, version: int, fold: Fold) -> Counted:
        return Counted(
            fold.client,
            version,
            fold.base_version,
            fold.examples,
            fold.metrics,
            self._duration(fold),
        )

    def _guarded(self, action: Callable[[], T]) -> T:
        return guarded("selection", self._selection, action)

    def _check(self, chosen: Sequence[str], size: int, may: Callable[[str], bool]) -> None:
        """Raises: UserError where a selection chose what it must not."""
        known = len(set(chosen)) == len(chosen) <= size
        if not known or not all(isinstance(c, str) and c.isdecimal() and may(c) for c in chosen):
            raise UserError(
                f"the selection {type(self._selection).__name__} chose {chosen[:5]}: at most "
                f"{size} different clients of moment.candidates are what it may choose"
            )


def client_order(client: str) -> tuple[int, str]:
    """Sorts client ids: numbers by value, names after them."""
    return (int(client), "") if client.isdecimal() else (2**62, client)
