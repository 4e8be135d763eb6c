"""Ringmaster. Maranjyan, Tyurin, Richtárik: Ringmaster ASGD: The First Asynchronous SGD with
Optimal Time Complexity, arXiv 2501.16168, Algorithm 4::

    if delta < R:  x_{k+1} <- x_k + eta Delta;  k <- k + 1
    else:          ignore what arrived

delta is how many versions old the base of the update is, and R ``aggregation.delay_threshold``.
The paper's gradient step -gamma g is here what a client's local training made of the model, Delta.
What is ignored is rejected as ``too_stale`` before it gets here (``staleness_limit`` is R - 1), so
that the ledger says so; the client gets its next turn at once. With ``participation.stop_stale`` a
training is stopped when a version makes its delta R, and starts anew from that one: Algorithm 5.
Values that are no parameters (batch-norm statistics) are those of the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from fluffle.aggregator.strategies.fedbuff import FedBuff
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.aggregator.strategies.staleness import StalenessParameters
from fluffle.schemas import Experiment
from fluffle.schemas.table import Positive


@dataclass(frozen=True, slots=True)
class Ringmaster(FedBuff):
    """A step along every delta that is young enough: FedBuff with K = 1."""


class RingmasterParameters(StalenessParameters):
    """A step along every delta that is young enough."""

    one_by_one: ClassVar[bool] = True
    private: ClassVar[bool] = True

    #: Names the strategy.
    strategy: Literal["ringmaster"] = "ringmaster"
    #: Updates this stale or staler are ignored (R). It has to be given.
    delay_threshold: int | None = Field(None, ge=1)
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 1.0

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError without R."""
        if self.delay_threshold is None:
            raise ValueError("ringmaster needs aggregation.delay_threshold (R)")

    @property
    def staleness_limit(self) -> int | None:
        """R - 1, or less."""
        limits = [self.max_staleness, self.delay_threshold and self.delay_threshold - 1]
        return min((limit for limit in limits if limit is not None), default=None)

    def make(self, experiment: Experiment) -> Ringmaster:
        """Ringmaster; R is kept by ``staleness_limit``."""
        return Ringmaster(Sgd(self.server_learning_rate), self.s)
