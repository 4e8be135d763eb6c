"""Krum and multi-Krum. Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent, NeurIPS 2017 (arXiv 1703.02757), section 4, for the n updates
of the buffer of which f may be bad, 2 f + 2 < n::

    s(i) = sum of |Delta_i - Delta_j|^2 over the n - f - 2 updates j closest to i
    Krum:        Delta = the Delta_i of the smallest s(i)
    multi-Krum:  Delta = the mean of the m Delta_i of the smallest s(i);  m = n - f by default
    x <- ServerOpt(x, Delta)

"Smallest identifier" decides between equals: the earliest turn. Distances are over ``trainable``
tensors; values that are no parameters (batch-norm statistics) are the mean of the chosen updates',
and integers and truth values those of the update with the smallest s(i).
``least_updates`` sees to it that no buffer closes with fewer than 2 f + 3 updates. s(tau) scales
the deltas of stale updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fluffle.aggregator.strategies.base import State, model_of
from fluffle.aggregator.strategies.fold import Sum, blocks
from fluffle.aggregator.strategies.operations import is_non_trainable, server_step, with_model
from fluffle.aggregator.strategies.optimizers import ServerOptimizer
from fluffle.aggregator.strategies.per_update import in_turn, keep_update, rows_of
from fluffle.aggregator.strategies.robust import RobustParameters
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors

#: Numbers of all updates together that are compared at once: 512 KiB of float64.
_SCRATCH = 2**16


@dataclass(frozen=True, slots=True)
class Krum:
    """``selected`` (m): how many updates are averaged; None for n - f."""

    optimizer: ServerOptimizer
    byzantine: int
    selected: int | None = 1
    s: Staleness = constant

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what the optimizer keeps."""
        return with_model(weights, self.optimizer)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Keep s(tau) Delta"""
        return keep_update(state, update, self.s(staleness))

    def step(self, state: State) -> State:
        """x <- ServerOpt(x, mean of the chosen)"""
        numbers = in_turn(state)
        scores = self.scores(squared_distances(state, numbers))
        most = len(numbers) - self.byzantine
        m = min(self.selected or most, most)
        best = np.argsort(scores, kind="stable")[: max(1, m)]
        chosen = [numbers[i] for i in sorted(best)]

        def mean_of_chosen(key: str, part: slice) -> Sum:
            first, *others = rows_of(state, chosen, key, part)
            total = first.astype(np.float64)
            for row in others:
                total += row
            total /= len(chosen)
            return total

        return server_step(
            state,
            self.optimizer,
            mean_of_chosen,
            lambda key, part, w: mean_of_chosen(key, part),
            exact=lambda key: np.array(state[f"buffer/{numbers[best[0]]}/{key}"]),
        )

    def scores(self, distances: Sum) -> Sum:
        """s(i) for each update, from the n x n squared distances."""
        n = len(distances)
        closest = max(1, n - self.byzantine - 2)
        others = distances + np.diag(np.full(n, np.inf))
        sums: Sum = np.sort(others, axis=1)[:, : min(closest, n - 1)].sum(axis=1)
        return sums


def squared_distances(state: State, numbers: list[int]) -> Sum:
    """|Delta_i - Delta_j|^2 over ``trainable`` tensors, shape (n, n).

    From the differences themselves: inner products would be cheaper, but lose the distances of
    honest updates beside those of one that is very long.
    """
    n = len(numbers)
    distances = np.zeros((n, n))
    for key, model in model_of(state).items():
        if is_non_trainable(key):
            continue
        for part in blocks(model.size, max(1, _SCRATCH // n)):
            rows = np.array(rows_of(state, numbers, key, part), np.float64)
            for i in range(n - 1):
                difference = rows[i + 1 :] - rows[i]
                distances[i, i + 1 :] += np.einsum("jk,jk->j", difference, difference)
    return distances + distances.T


class _KrumParameters(RobustParameters):
    #: How many updates of a buffer may be bad (f); 0 for none. Default: at most, (K - 3) / 2.
    byzantine_updates: int | None = Field(None, ge=0)

    def bad(self, quorum: int) -> int:
        """f"""
        f = self.byzantine_updates
        return max(1, (quorum - 3) // 2) if f is None else f

    def least_updates(self, quorum: int) -> int:
        """2 f + 3"""
        return 2 * self.bad(quorum) + 3


class KrumParameters(_KrumParameters):
    """The update that lies closest to its neighbours."""

    #: Names the strategy.
    strategy: Literal["krum"] = "krum"

    def make(self, experiment: Experiment) -> Krum:
        """Krum with the optimizer and the staleness of these keys."""
        return Krum(self.optimizer, self.bad(experiment.quorum), 1, self.s)


class MultiKrumParameters(_KrumParameters):
    """The mean of the updates that lie closest to their neighbours."""

    #: Names the strategy.
    strategy: Literal["multi-krum"] = "multi-krum"
    #: How many updates are averaged (m), never more than the buffer's less f. Default: so many.
    krum_selected: int | None = Field(None, ge=1)

    def make(self, experiment: Experiment) -> Krum:
        """Multi-Krum with the optimizer and the staleness of these keys."""
        return Krum(self.optimizer, self.bad(experiment.quorum), self.krum_selected, self.s)
