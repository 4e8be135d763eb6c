"""Median and trimmed mean, coordinate by coordinate. Yin, Chen, Ramchandran, Bartlett:
Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, arXiv 1803.01498,
Definitions 1 and 2, for the n updates of the buffer::

    med    = in each coordinate, the median of the Delta_i (the mean of the middle two if n is even)
    trmean = in each coordinate, the mean without the b n smallest and the b n largest Delta_i
    x <- ServerOpt(x, med or trmean)

b n is rounded down. They hold against a share of bad updates below 1/2 and up to b: f of them take
2 f + 1 updates, and so many that b n is f; with fewer no version is made. Examples count
for nothing: a bad client may claim any number. Values that are no parameters (batch-norm
statistics) get the same median or trimmed mean, and those that are integers or truth values the
lower one of the middle, as it came. s(tau) scales the deltas of stale updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.fold import Sum
from fluffle.aggregator.strategies.operations import server_step, with_model
from fluffle.aggregator.strategies.optimizers import ServerOptimizer
from fluffle.aggregator.strategies.per_update import in_turn, keep_update, rows_of
from fluffle.aggregator.strategies.robust import RobustParameters
from fluffle.aggregator.strategies.sorting import Sorter, block_length
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.tensors import Array


def middle_of(state: State, numbers: list[int], key: str) -> Array:
    """The lower one of the middle in each coordinate: a value that somebody sent."""
    rows = np.stack([state[f"buffer/{number}/{key}"] for number in numbers])
    middle: Array = np.sort(rows, axis=0)[(len(numbers) - 1) // 2]
    return np.asarray(middle)


def cut_of(trim: float, n: int) -> int:
    """b n, rounded down: how many of n are left out at each end."""
    return int(trim * n + 1e-9)  # 0.29 * 100 is 28.999…


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The mean of the middle: ``trim`` is the share left out at each end."""

    optimizer: ServerOptimizer
    trim: float
    s: Staleness = constant

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what the optimizer keeps."""
        return with_model(weights, self.optimizer)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Keep s(tau) Delta"""
        return keep_update(state, update, self.s(staleness))

    def step(self, state: State) -> State:
        """x <- ServerOpt(x, trmean)"""
        numbers = in_turn(state)
        middle = self.middle(len(numbers))
        sort = Sorter(len(numbers), middle)

        def mean_of_middle(key: str, part: slice) -> Sum:
            rows = sort(rows_of(state, numbers, key, part))
            total = rows[middle[0]].astype(np.float64)
            for rank in middle[1:]:
                total += rows[rank]
            total /= len(middle)
            return total

        return server_step(
            state,
            self.optimizer,
            mean_of_middle,
            lambda key, part, w: mean_of_middle(key, part),
            block_length(len(numbers)),
            lambda key: middle_of(state, numbers, key),
        )

    def middle(self, n: int) -> range:
        """The ranks that count, of n."""
        cut = cut_of(self.trim, n)
        return range(cut, n - cut)


@dataclass(frozen=True, slots=True)
class Median(TrimmedMean):
    """The mean of the middle one or two: ``trim`` is 1/2."""

    trim: float = 0.5

    def middle(self, n: int) -> range:
        """The ranks that count, of n."""
        return range((n - 1) // 2, n // 2 + 1)


class MedianParameters(RobustParameters):
    """The median of the updates, coordinate by coordinate."""

    #: Names the strategy.
    strategy: Literal["median"] = "median"

    def least_updates(self, quorum: int) -> int:
        """2 f + 1"""
        return 2 * self.bad(quorum) + 1

    def make(self, experiment: Experiment) -> Median:
        """The median with the optimizer and the staleness of these keys."""
        return Median(self.optimizer, s=self.s)


class TrimmedMeanParameters(RobustParameters):
    """The mean of the middle, coordinate by coordinate."""

    #: Names the strategy.
    strategy: Literal["trimmed-mean"] = "trimmed-mean"
    #: The share of updates left out at each end, in every coordinate (b).
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2

    def least_updates(self, quorum: int) -> int:
        """The smallest n with a b n of f"""
        f = self.bad(quorum)
        least = max(1, math.ceil(f / self.trim - 1e-9))
        return least + (cut_of(self.trim, least) < f)

    def make(self, experiment: Experiment) -> TrimmedMean:
        """The trimmed mean with the optimizer and the staleness of these keys."""
        return TrimmedMean(self.optimizer, self.trim, self.s)
