"""Secure aggregation around a strategy that needs only sums: they are taken of masked updates.

With whole weights w_k, scaled words y_k and masks r_k (``fluffle.schemas.masking``)::

    accept:  Y <- Y + w_k y_k   mod 2^32
    unmask:  sum <- (Y - sum_k w_k r_k) / (s W),   the right part from the helper
    step:    as the strategy, of which this is the buffer's sum

Weights are whole numbers from 1 to W = ``max_weight``. With n_k the examples (or one, where all
weigh the same), n their largest number and s(tau) the strategy's staleness::

    a_k = max(1, round(W n_k / n)),   w_k = max(1, round(a_k s(tau_k)))

and the strategy divides by sum_k a_k / W, or by how many they are, as it does otherwise. Values
that are no parameters (batch-norm statistics) are averaged with weights w_k.

Sums modulo 2^32 are exact, and so the same in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.operations import is_exact
from fluffle.aggregator.strategies.staleness import Staleness, StalenessParameters
from fluffle.schemas import ClientUpdate, Experiment, Tensors, UserError
from fluffle.schemas.masking import SEAL, WORDS, Words, add_words, masked_spec, real
from fluffle.schemas.secure import scale_of
from fluffle.schemas.tensors import FROZEN, Spec

_TOTAL, _SEALS = "buffer/masked/total", "buffer/masked/seals"
_WEIGHTS, _SHARES = "buffer/masked/weights", "buffer/masked/shares"
_CLOSED = "buffer/masked/closed"


@dataclass(frozen=True, slots=True)
class Masked:
    """A strategy whose sums come from a helper's answer."""

    inner: Strategy
    s: Staleness
    #: What n_k is divided by; None where all weigh the same.
    most_examples: int | None
    max_weight: int
    scale: float

    @classmethod
    def around(cls, inner: Strategy, experiment: Experiment) -> Strategy:
        """The strategy under ``[secure_aggregation]``, where the experiment has it."""
        table, aggregation = experiment.secure_aggregation, experiment.aggregation
        if table is None:
            return inner
        assert isinstance(aggregation, StalenessParameters), "none other is linear"
        by_examples = getattr(aggregation, "weighting", "uniform") == "examples"
        return cls(
            inner,
            aggregation.s,
            experiment.admission.max_examples if by_examples else None,
            table.max_weight,
            scale_of(table, experiment.quorum),
        )

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """As the strategy."""
        return self.inner.sends

    def init(self, weights: Tensors) -> State:
        """As the strategy. Raises: UserError for a model with values that have no sum."""
        exact = [key for key, array in weights.items() if is_exact(key, array) and key != FROZEN]
        if exact:
            raise UserError(
                f"secure_aggregation adds up numbers, and {exact[0]} of this model is taken from "
                "one update as it is: use a model without"
            )
        return self.inner.init(weights)

    def update_spec(self, model: Tensors) -> Spec:
        """What a masked update of this model looks like."""
        return masked_spec(model)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Y <- Y + w y"""
        share = self.max_weight
        if self.most_examples is not None:
            share = max(1, round(share * update.examples / self.most_examples))
        weight = max(1, round(share * self.s(staleness)))
        words = np.asarray(update.tensors[WORDS], np.uint32)
        total = np.asarray(state.get(_TOTAL, np.zeros(words.shape, np.uint32)), np.uint32)
        if not total.flags.writeable:  # as it was read from a checkpoint
            total = total.copy()
        add_words(total, words, weight)
        state[_TOTAL] = total
        seal = np.asarray(update.tensors[SEAL], np.uint8)[None]
        for key, row in (
            (_SEALS, seal),
            (_WEIGHTS, np.array([weight])),
            (_SHARES, np.array([share])),
        ):
            state[key] = np.concatenate([state[key], row]) if key in state else row
        return state

    def close(self, state: State) -> State:
        """The buffer takes no more: from now on the helper may have been asked for it."""
        return {**state, _CLOSED: np.array(1)}

    def is_closed(self, state: State) -> bool:
        """Whether it was closed, by this leader or one before."""
        return _CLOSED in state

    def members(self, state: State) -> list[tuple[int, bytes]]:
        """Weight and seal of every update in the buffer, in the order of their folds."""
        pairs = zip(state[_WEIGHTS].tolist(), state[_SEALS], strict=True)
        return [(weight, seal.tobytes()) for weight, seal in pairs]

    def words(self, state: State) -> int:
        """How many words the buffer's sum has."""
        return state[_TOTAL].size

    def unmask(self, state: State, masks: Words) -> State:
        """The strategy's own buffer, by the helper's sum of masks."""
        total = np.asarray(state[_TOTAL], np.uint32) - masks
        weights, shares = (np.asarray(state[k], np.float64) for k in (_WEIGHTS, _SHARES))
        open_state = {k: a for k, a in state.items() if not k.startswith("buffer/masked/")}
        sums = real(total, model_of(state), self.scale * self.max_weight)
        return {
            **open_state,
            **{f"buffer/sum/{key}": values for key, values in sums.items()},
            "buffer/weight": np.array(weights.sum() / self.max_weight),
            "buffer/updates": np.array(float(weights.size)),
            "buffer/n": np.array(shares.sum() / self.max_weight),
        }

    def step(self, state: State) -> State:
        """As the strategy, of the unmasked buffer."""
        return self.inner.step(state)
