"""FedDyn's client. Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning
Based on Dynamic Regularization, arXiv 2111.04263, Algorithm 1 and equation 1::

    theta_k = argmin L_k(theta) - <g_k, theta> + alpha / 2 |theta - theta_base|^2
    g_k <- g_k - alpha (theta_k - theta_base)

so that every gradient has - g_k + alpha (theta - theta_base). g_k is what the client keeps: zero
before its first turn, and where it is lost. alpha comes with the global model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle.schemas import Tensors, group
from fluffle.schemas.tensors import Array, named
from fluffle.worker.training.algorithms.base import After, Algorithm, Given, Turn
from fluffle.worker.training.algorithms.fedprox import pulled

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context


class FedDyn(Algorithm):
    """Training on a loss that moves with what the client has learned before."""

    def before(self, turn: Turn) -> Given:
        """g_k and alpha."""
        alpha = np.asarray(turn.base["feddyn/alpha"], np.float32)
        return {"gradient": _kept(turn), "alpha": [alpha]}

    def gradients(self, gradients: Sequence[Any], context: Context) -> Sequence[Any]:
        """grad L_k - g_k + alpha (theta - theta_base)"""
        (alpha,) = context["alpha"]
        near = pulled(gradients, context.weights, context.base, alpha)
        pairs = zip(near, context["gradient"], strict=True)
        return [None if g is None else g - kept for g, kept in pairs]

    def after(self, turn: Turn, local: Tensors) -> After:
        """g_k <- g_k - alpha (theta_k - theta_base)"""
        alpha = float(turn.base["feddyn/alpha"].item())
        base, moved = group("trainable", turn.base), group("trainable", local)
        following: list[Array] = []
        for g, start, end in zip(_kept(turn), base, moved, strict=True):
            path = np.asarray(end, np.float64) - np.asarray(start, np.float64)
            following.append((np.asarray(g, np.float64) - alpha * path).astype(g.dtype))
        return After(keep=named("feddyn", following))


def _kept(turn: Turn) -> list[Array]:
    zeros: list[Array] = [np.zeros_like(a) for a in group("trainable", turn.base)]
    return group("feddyn", turn.state or {}) or zeros
