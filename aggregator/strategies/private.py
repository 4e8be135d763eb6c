"""Central differential privacy for clients. McMahan, Ramage, Talwar, Zhang: Learning Differentially
Private Recurrent Language Models, arXiv 1710.06963, Algorithm 1 with flat clipping::

    Delta_k <- Delta_k min(1, C / |Delta_k|_2)
    sum <- sum_k Delta_k + N(0, (z C)^2 I)

and then any strategy that adds up what it accepts, each with a weight of one at most: no update can
move its sum by more than C. The division by how many there are needs no noise, since that depends
on nobody's data. ``fluffle.aggregator.ledger.privacy`` says what it comes to.

The noise of a version is a function of the run's secret key and the number of the step, so that a
version can be recomputed by who has the key, and by nobody else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluffle.aggregator.strategies.base import State, Strategy
from fluffle.aggregator.strategies.fold import Sum, blocks, squared_norm
from fluffle.aggregator.strategies.operations import is_non_trainable
from fluffle.schemas import ClientUpdate, Tensors, UserError
from fluffle.schemas.tensors import FROZEN, Array

_STEPS = "server/private/steps"
_SUM = "buffer/sum/"


@dataclass(frozen=True, slots=True)
class Private:
    """A strategy whose sums are clipped and blurred."""

    inner: Strategy
    #: C
    clip_norm: float
    #: z
    noise_multiplier: float
    #: The run's secret.
    key: int

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """As the strategy."""
        return self.inner.sends

    def init(self, weights: Tensors) -> State:
        """As the strategy. Raises: UserError for a model with values that are averaged bare."""
        if any(is_non_trainable(name) and name != FROZEN for name in weights):
            raise UserError(
                "[privacy] covers trainable weights alone, and this model has others that are "
                "averaged (batch normalisation): use one without, such as with layer normalisation"
            )
        return {**self.inner.init(weights), _STEPS: np.array(0)}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Fold Delta min(1, C / |Delta|)."""
        deltas = {k: a for k, a in update.tensors.items() if k != FROZEN}
        length = math.sqrt(sum(map(squared_norm, deltas.values())))
        if length > self.clip_norm:
            factor = self.clip_norm / length
            clipped = {k: a.astype(np.float64) * factor for k, a in deltas.items()}
            update = update.model_copy(update={"tensors": {**update.tensors, **clipped}})
        return self.inner.accept(state, update, staleness)

    def step(self, state: State) -> State:
        """Blur the sums, then step as the strategy."""
        number = int(state[_STEPS])
        rng = np.random.default_rng([self.key, number])
        blurred = {
            name: self._blurred(array, rng) if name.startswith(_SUM) else array
            for name, array in state.items()
        }
        return {**self.inner.step(blurred), _STEPS: np.array(number + 1)}

    def _blurred(self, array: Array, rng: np.random.Generator) -> Sum:
        total = np.array(array, np.float64)
        flat = total.reshape(-1)
        for part in blocks(flat.size):
            flat[part] += rng.normal(0.0, self.noise_multiplier * self.clip_norm, flat[part].shape)
        return total
