"""FedProx's client. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in
Heterogeneous Networks, arXiv 1812.06127, equation 2::

    min_w F_k(w) + mu / 2 |w - w_base|^2

so that mu (w - w_base) is in every gradient. w_base is the global model that the turn began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fluffle.worker.training.algorithms.base import Algorithm

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context


class FedProx(Algorithm):
    """Local training that stays near the global model; with mu = 0 it is FedAvg's."""

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def gradients(self, gradients: Sequence[Any], context: Context) -> Sequence[Any]:
        """g + mu (w - w_base)"""
        return pulled(gradients, context.weights, context.base, self._mu) if self._mu else gradients


def pulled(
    gradients: Sequence[Any], weights: Sequence[Any], towards: Sequence[Any], mu: Any
) -> list[Any]:
    """g + mu (w - towards), None where there is no gradient."""
    import tensorflow as tf

    return [
        None if g is None else tf.convert_to_tensor(g) + mu * (w.value - point)
        for g, w, point in zip(gradients, weights, towards, strict=True)
    ]
