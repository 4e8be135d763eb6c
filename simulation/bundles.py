"""Trainings of the virtual clock that an engine does several at a time.

Which of them share a step is a function of the events alone, never of the real clock: trainings
gather until the loop waits for one. Then all that have gathered become bundles, in the order in
which they are due: of one key (plan, base and shape), as many as the engine has lanes::

    submit ─> gathered ─(the loop waits for any of them)─> bundled: a job of the pool ─> waited for
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from fluffle.simulation.pool import Job, Pool

#: (what a slot's thread has made, what each member has) -> a result or an error for each.
Work = Callable[[Any, Sequence[Any]], list[Any]]


@dataclass(eq=False)
class Member:
    """One training that may share a step with others."""

    due: float
    key: Hashable
    what: Any
    bundle: Bundle | None = None
    place: int = 0


class Bundle:
    """A job of several members, and what it gave for those that nobody has waited for."""

    def __init__(self, job: Job[list[Any]], members: int) -> None:
        self.job = job
        self.members = members
        self.abandoned = 0
        self.results: list[Any] | None = None


class Bundles:
    """Gathers trainings, and hands them to a pool as bundles."""

    def __init__(self, pool: Pool, work: Work, lanes: int) -> None:
        self._pool = pool
        self._work = work
        self._lanes = lanes
        self._gathered: list[Member] = []

    def submit(self, due: float, key: Hashable, what: Any) -> Member:
        """A training whose result is due at this virtual time; those of equal keys can share."""
        member = Member(due, key, what)
        self._gathered.append(member)
        return member

    def wait(self, member: Member) -> Any:
        """The result, once it is there. Raises: what the training raised."""
        if member.bundle is None:
            self._bundle()
        bundle = member.bundle
        assert bundle is not None
        if bundle.results is None:
            try:
                bundle.results = self._pool.wait(bundle.job)
            except BaseException as error:  # a step that fails fails all that shared it
                bundle.results = [error] * bundle.members
        result, bundle.results[member.place] = bundle.results[member.place], None
        if isinstance(result, BaseException):
            raise result
        return result

    def abandon(self, member: Member) -> None:
        """Nobody waits for this one, or ever will; who shares its step goes on."""
        bundle = member.bundle
        if bundle is None:
            self._gathered.remove(member)
            return
        bundle.abandoned += 1
        if bundle.results is not None:
            bundle.results[member.place] = None
        elif bundle.abandoned == bundle.members:
            self._pool.abandon(bundle.job)

    def _bundle(self) -> None:
        by_key: dict[Hashable, list[Member]] = {}
        for member in sorted(self._gathered, key=lambda one: one.due):
            by_key.setdefault(member.key, []).append(member)
        self._gathered.clear()
        for members in by_key.values():
            for start in range(0, len(members), self._lanes):
                self._hand_over(members[start : start + self._lanes])

    def _hand_over(self, members: list[Member]) -> None:
        whats = [member.what for member in members]
        work = self._work
        job = self._pool.submit(members[0].due, lambda made: work(made, whats))
        bundle = Bundle(job, len(members))
        for place, member in enumerate(members):
            member.bundle, member.place = bundle, place
