"""Plateau: server steps get shorter when evaluations no longer get better, as Keras's
``ReduceLROnPlateau`` does it for one learner::

    x <- x + f (step(x) - x)
    f <- f factor,  after ``patience`` evaluations in a row that are no better than the best before

around any strategy: f scales its server learning rate. Better is a larger accuracy, or a smaller
loss where there is no accuracy. An evaluation takes effect with the next version that is made, and
the ledger keeps with which. Values that are no parameters (batch-norm statistics), and exact ones,
are the strategy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.fold import cast_like
from fluffle.aggregator.strategies.operations import is_exact, is_non_trainable
from fluffle.aggregator.strategies.scores import score_of
from fluffle.schemas import ClientUpdate, Tensors

#: f, the best score, how many since, and whether there was one.
_STATE = "server/plateau"


@dataclass(frozen=True, slots=True)
class Plateau:
    """A strategy whose steps get shorter on a plateau."""

    inner: Strategy
    patience: int
    factor: float

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """As the strategy."""
        return self.inner.sends

    def init(self, weights: Tensors) -> State:
        """As the strategy; f = 1."""
        return {**self.inner.init(weights), _STATE: np.array([1.0, 0.0, 0.0, 0.0])}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """As the strategy."""
        return self.inner.accept(state, update, staleness)

    def on_evaluation(self, state: State, version: int, metrics: Mapping[str, float]) -> State:
        """f <- f factor, after ``patience`` that are no better."""
        f, best, waited, seen = state[_STATE]
        score = score_of(metrics)
        if score is None:
            return state
        if not seen or score > best:
            best, waited = score, 0.0
        else:
            waited += 1
        if waited >= self.patience:
            f, waited = f * self.factor, 0.0
        return {**state, _STATE: np.array([f, best, waited, 1.0])}

    def step(self, state: State) -> State:
        """x <- x + f (step(x) - x)"""
        before, kept = model_of(state), state[_STATE]
        following = {**self.inner.step(state), _STATE: kept}
        f = float(kept[0])
        for key, x in before.items():
            if f != 1.0 and not is_non_trainable(key) and not is_exact(key, x):
                w = np.asarray(x, np.float64)
                moved = np.asarray(following[f"model/{key}"], np.float64) - w
                following[f"model/{key}"] = cast_like(w + f * moved, x)
        return following
