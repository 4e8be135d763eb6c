"""Ringmaster. Maranjyan, Tyurin, Richtárik: Ringmaster ASGD: The First Asynchronous SGD with
Optimal Time Complexity, arXiv 2501.16168, Algorithm 4::

    if delta < R:  x_{k+1} <- x_k + eta Delta;  k <- k + 1
    else:          ignore what arrived

delta is how many versions old the base of the update is, and R ``aggregation.delay_threshold``.
The paper's gradient step -gamma g is here what a client's local training made of the model, Delta.
What is ignored is rejected as ``too_stale`` before it gets here (``Experiment.max_staleness`` is
R - 1), so that the ledger says so; the client gets its next turn at once. Values that are no
parameters (batch-norm statistics) are those of the update.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluffle.aggregator.strategies.fedbuff import FedBuff


@dataclass(frozen=True, slots=True)
class Ringmaster(FedBuff):
    """A step along every delta that is young enough: FedBuff with K = 1."""
