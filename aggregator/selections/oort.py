"""Oort. Lai, Zhu, Madhyastha, Chowdhury: Oort: Efficient Federated Learning via Guided Participant
Selection, arXiv 2010.06081, Algorithm 1 and equation 1::

    U(i)    = |B_i| sqrt(1 / |B_i| sum_{k in B_i} Loss(k)^2)     of those who have counted, E
    Util(i) = U(i) + sqrt(0.1 log R / L(i))                     U(i) clipped at its 95th percentile
    Util(i) = Util(i) (T / D(i))^alpha   where T < D(i)
    exploit (1 - eps) K:  in proportion to Util, of those with Util >= c Util((1 - eps) K)
    explore eps K:        of those who have not counted yet
    T <- T + Delta  where sum U(R - 2W : R - W) > sum U(R - W : R)

R is the version that is to be made, L(i) the one that counted i last, D(i) the seconds that its
turn took, U(R) the sum of the utilities of a version's updates. eps is 0.9 at first, times 0.98
with each version, and 0.2 at the least.

What is other than in the paper: a client says its mean loss, which takes the place of the root mean
square of its examples' (the same where all are equal, less where not), unless it sends a metric
``loss_rms``. Nothing is known of the speed of who has not counted yet: they are explored uniformly.
Shares of K are rounded up or down at random such that they are right on average, as one by one they
have to be. The authors' program scales U to [0, 1], takes T from percentiles, and no longer selects
who was selected often; none of that is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fluffle.aggregator.selections.base import Counted, Moment, Selection, loss_of
from fluffle.schemas import Experiment
from fluffle.schemas.table import Fraction, NonNegative, Positive, Table

#: Of the temporal uncertainty.
_UNCERTAINTY = 0.1
_CLIP_AT = 95


class OortParameters(Table):
    """What Oort takes."""

    #: By how much T grows, and what it is at first, in seconds (Delta). It has to be given.
    pacer_step_s: Positive
    #: How many versions the pacer compares with as many before them (W).
    window: Annotated[int, Field(ge=1)] = 20
    #: How strongly the slow are punished (alpha).
    penalty: NonNegative = 2.0
    #: eps at first, what it is multiplied by with each version, and at the least.
    exploration: Annotated[float, Field(ge=0, le=1)] = 0.9
    exploration_decay: Fraction = 0.98
    exploration_least: Annotated[float, Field(ge=0, le=1)] = 0.2
    #: Whose utility is at least so much of the last one's who would be taken has a chance (c).
    cut_off: Fraction = 0.95


class Oort(Selection):
    """Clients with much to learn from, and fast ones."""

    def __init__(self, **parameters: float) -> None:
        """parameters: ``OortParameters``'."""
        self.parameters = OortParameters.model_validate(parameters)
        #: T
        self.preferred_s = self.parameters.pacer_step_s
        self._epsilon = self.parameters.exploration
        self._utility: dict[str, float] = {}
        self._duration_s: dict[str, float] = {}
        self._last: dict[str, int] = {}
        #: U(R) of the last 2 W versions.
        self._sums: list[float] = []

    def observe(self, version: int, counted: Sequence[Counted]) -> None:
        """Feedback, and the pacer."""
        total = 0.0
        for update in counted:
            loss = update.metrics.get("loss_rms")
            utility = update.examples * (loss_of(update, "oort") if loss is None else loss)
            self._utility[update.client] = utility
            self._duration_s[update.client] = update.duration_s
            self._last[update.client] = version
            total += utility
        window = self.parameters.window
        self._sums = [*self._sums, total][-2 * window :]
        full = len(self._sums) == 2 * window
        if full and sum(self._sums[:window]) > sum(self._sums[window:]):
            self.preferred_s += self.parameters.pacer_step_s
        least, decayed = self.parameters.exploration_least, self.parameters.exploration_decay
        self._epsilon = max(self._epsilon * decayed, min(least, self.parameters.exploration))

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where a choice must not depend on the time that turns took."""
        if experiment.aggregation.deterministic:
            raise ValueError(
                "oort chooses by how long turns took, which is no function of the seed: remove "
                "aggregation.deterministic, or choose another participation.selection"
            )

    def utilities(self, names: Sequence[str], version: int) -> dict[str, float]:
        """Util of these clients, who have counted, for the version that is to be made."""
        if not names:
            return {}
        most = float(np.percentile(list(self._utility.values()), _CLIP_AT))
        found = {}
        for name in names:
            uncertainty = math.sqrt(_UNCERTAINTY * math.log(version) / self._last[name])
            util = min(self._utility[name], most) + uncertainty
            took = self._duration_s[name]
            if took > self.preferred_s:
                util *= (self.preferred_s / took) ** self.parameters.penalty
            found[name] = util
        return found

    def choose(self, moment: Moment, size: int) -> Sequence[str]:
        """Exploit, explore, and more of either where there is too little of the other."""
        rng = moment.generator()
        explored = [name for name in moment.candidates if name in self._utility]
        fresh = [name for name in moment.candidates if name not in self._utility]
        wanted = (1 - self._epsilon) * size
        exploit = math.floor(wanted) + int(rng.random() < wanted % 1)
        exploit = min(len(explored), max(exploit, size - len(fresh)))
        utilities = self.utilities(explored, moment.version + 1)
        chosen = _by_utility(utilities, exploit, self.parameters.cut_off, rng)
        explore = min(len(fresh), size - len(chosen))
        if explore:
            chosen += map(str, rng.choice(fresh, size=explore, replace=False))
        return sorted(chosen, key=int)


def _by_utility(
    utilities: Mapping[str, float], size: int, share: float, rng: np.random.Generator
) -> list[str]:
    if not size:
        return []
    ranked = sorted(utilities, key=lambda name: -utilities[name])
    least = share * utilities[ranked[size - 1]]
    names = [name for name in ranked if utilities[name] >= least]
    weights = np.array([utilities[name] for name in names], np.float64)
    if np.count_nonzero(weights) < size:  # nobody has anything to learn from
        weights = np.ones_like(weights)
    drawn = rng.choice(names, size=size, replace=False, p=weights / weights.sum())
    return [str(name) for name in drawn]
