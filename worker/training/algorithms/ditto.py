"""Ditto's client. Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through
Personalization, arXiv 2012.04221, Algorithm 1 and equation 2::

    the update:          w_k from w, as FedAvg's
    the personal model:  v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w))

for as many steps each. v_k stays with the client; it is w before its first turn, and where it is
lost. w is the global model that the turn began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle.schemas import Tensors, group
from fluffle.schemas.tensors import model_groups
from fluffle.worker.training.algorithms.base import After, Algorithm, Given, Turn
from fluffle.worker.training.algorithms.fedprox import pulled

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context

#: Where a client's state has its personal model.
_OWN = "ditto/"


class Ditto(Algorithm):
    """FedAvg's update, and a second training for a model of the client's own."""

    def __init__(self, pull: float) -> None:
        """``pull``: lambda."""
        self._pull = pull

    def before(self, turn: Turn) -> Given:
        """w; the update's training is not pulled anywhere."""
        return self._given(turn, 0.0)

    def gradients(self, gradients: Sequence[Any], context: Context) -> Sequence[Any]:
        """grad + lambda (v - w)"""
        (pull,) = context["pull"]
        return pulled(gradients, context.weights, context["anchor"], pull)

    def after(self, turn: Turn, local: Tensors) -> After:
        """Train v_k, and keep it."""
        whole = model_groups(turn.base)
        kept = self.personal_model(turn.state or {})
        own = turn.local_training({**whole, **kept}, self._given(turn, self._pull))
        return After(keep={_OWN + name: array for name, array in own.items()})

    def personal_model(self, kept: Tensors) -> Tensors:
        """v_k"""
        return {k.removeprefix(_OWN): a for k, a in kept.items() if k.startswith(_OWN)}

    def _given(self, turn: Turn, pull: float) -> Given:
        return {"anchor": group("trainable", turn.base), "pull": [np.array(pull, np.float32)]}
