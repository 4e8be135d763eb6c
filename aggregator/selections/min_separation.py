"""Min-separation: no client counts twice within b versions. Choquette-Choo, Ganesh, McKenna,
McMahan, Rush, Thakurta, Xu: (Amplified) Banded Matrix Factorization, arXiv 2306.08153, b-min-sep
participation, which the privacy of banded matrices assumes::

    client c counts in versions i and j, i < j   =>   j - i >= b

The choice is uniform among those who may be chosen and would not break it. Who was chosen before
and answers late could break it all the same, and so could sites, whom nobody chooses: such an
update is rejected (``too_soon``). With b = 1 a version counts a client once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fluffle.aggregator.selections.base import Counted, Moment, Selection
from fluffle.aggregator.selections.uniform import Uniform
from fluffle.schemas import Experiment


class MinSeparation(Selection):
    """Uniform among those whose last version is b versions back."""

    def __init__(self, separation: int) -> None:
        """separation: b."""
        if isinstance(separation, bool) or not isinstance(separation, int) or separation < 1:
            raise ValueError("separation is a number of versions, 1 or more")
        self.separation = separation
        self._last: dict[str, int] = {}
        self._uniform = Uniform()

    def choose(self, moment: Moment, size: int) -> Sequence[str]:
        """Whoever is chosen counts in the next version at the earliest."""

        def may(client: str) -> bool:
            next_one = moment.version + 1
            return self.admits(client, next_one, moment.in_buffer) and moment.may(client)

        return self._uniform.choose(replace(moment, may=may), size)

    def observe(self, version: int, counted: Sequence[Counted]) -> None:
        """Remember when each counted last."""
        self._last.update((update.client, version) for update in counted)

    def admits(self, client: str, version: int, in_buffer: Collection[str]) -> bool:
        """j - i >= b."""
        last = version if client in in_buffer else self._last.get(client)
        return last is None or version - last >= self.separation

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where versions would run out of clients."""
        cohort = experiment.participation.mode == "cohort"
        wanted = experiment.concurrency if cohort else experiment.quorum
        needed = (self.separation - 1) * experiment.quorum + wanted
        there = experiment.task.clients if cohort else experiment.everybody
        if there < needed:
            raise ValueError(
                f"min-separation with separation = {self.separation} keeps the clients of the last "
                f"{self.separation - 1} versions away, and a version takes {wanted}: that needs "
                f"{needed} clients, and there are {there}"
            )
