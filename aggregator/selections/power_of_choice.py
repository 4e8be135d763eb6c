"""Power-of-choice. Cho, Wang, Joshi: Client Selection in Federated Learning: Convergence Analysis
and Power-of-Choice Selection Strategies, arXiv 2010.01243, section 4, as pi_rpow-d::

    A  <- d clients, without replacement, client k with probability p_k, its share of the data
    S  <- the m clients of A with the largest losses F_k

F_k is not asked for anew: as in pi_rpow-d it is the mean loss of client k's last training that
counts, and infinity for one that has not counted yet. d = m is pi_rand. Where clients are chosen
one by one (concurrent mode), m is 1. p_k is known from a client's first update on; one of whom
nothing is known is drawn as if it had the mean of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fluffle.aggregator.selections.base import Counted, Moment, Selection, loss_of
from fluffle.schemas import Experiment


class PowerOfChoice(Selection):
    """Of d drawn clients those with the largest losses."""

    def __init__(self, candidates: int) -> None:
        """candidates: d."""
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise ValueError("candidates is a number of clients, 1 or more")
        self._d = candidates
        self._losses: dict[str, float] = {}
        self._examples: dict[str, int] = {}

    def observe(self, version: int, counted: Sequence[Counted]) -> None:
        """Remember losses and sizes."""
        for update in counted:
            self._losses[update.client] = loss_of(update, "power-of-choice")
            self._examples[update.client] = update.examples

    def choose(self, moment: Moment, size: int) -> Sequence[str]:
        """The m largest losses of d; a cohort in client order."""
        names = moment.candidates
        if not names:
            return []
        drawn = moment.generator().choice(
            names, size=min(max(self._d, size), len(names)), replace=False, p=self._shares(names)
        )
        # The draw is in random order and the sort keeps it: equal losses are decided at random.
        ranked = sorted(map(str, drawn), key=lambda c: -self._losses.get(c, math.inf))
        return sorted(ranked[:size], key=int)

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where d is no choice."""
        cohort = experiment.participation.mode == "cohort"
        least = experiment.concurrency if cohort else 1
        if not least <= self._d <= experiment.task.clients:
            raise ValueError(
                f"power-of-choice chooses {least} of candidates = {self._d} of "
                f"{experiment.task.clients} clients: candidates lies between the two"
            )

    def _shares(self, names: Sequence[str]) -> list[float]:
        known: Mapping[str, int] = self._examples
        typical = sum(known.values()) / len(known) if known else 1.0
        sizes = [known.get(name, typical) for name in names]
        total = sum(sizes)
        return [size / total for size in sizes]
