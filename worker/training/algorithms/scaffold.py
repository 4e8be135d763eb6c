"""SCAFFOLD's client. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning, arXiv 1910.06378, Algorithm 1 and equations 3 and 4::

    K times:  y <- y - eta_l (g_i(y) - c_i + c)
    c_i+ <- (I) g_i(x)   or   (II) c_i - c + (x - y) / (K eta_l)
    send (y - x, c_i+ - c_i);  c_i <- c_i+

x and c come with the global model (the group ``control``), c_i is what the client keeps: zero
before its first turn. g_i(x) is the gradient of the mean loss over all of the client's examples.
A client whose c_i is lost takes c for it: its step is not corrected, and what it adds to c does not
count its first c_i twice, as zero would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle.schemas import Tensors, group
from fluffle.schemas.tensors import Array, named
from fluffle.worker.training.algorithms.base import After, Algorithm, Given, Turn

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context


class Scaffold(Algorithm):
    """Training with control variates, by option I or II of the paper as the plan asks."""

    def before(self, turn: Turn) -> Given:
        """c - c_i. Raises: ValueError where the strategy's ``control`` is missing."""
        c, own = _variates(turn)
        return {"correction": [np.subtract(a, b) for a, b in zip(c, own, strict=True)]}

    def gradients(self, gradients: Sequence[Any], context: Context) -> Sequence[Any]:
        """g_i(y) - c_i + c (equation 3)"""
        import tensorflow as tf

        return [
            None if g is None else tf.convert_to_tensor(g) + correction
            for g, correction in zip(gradients, context["correction"], strict=True)
        ]

    def after(self, turn: Turn, local: Tensors) -> After:
        """c_i+, which is kept, and c_i+ - c_i, which goes along."""
        c, own = _variates(turn)
        if turn.plan.asks == "control-variate-I":
            following = turn.full_gradient()
        else:
            x, y = group("trainable", turn.base), group("trainable", local)
            length = turn.steps * turn.plan.training.learning_rate
            following = along_the_path(own, c, x, y, length)
        changes = [np.subtract(a, b) for a, b in zip(following, own, strict=True)]
        return After(send=named("control", changes), keep=named("control", following))


def _variates(turn: Turn) -> tuple[list[Array], list[Array]]:
    """c and c_i."""
    x, c = group("trainable", turn.base), group("control", turn.base)
    state = turn.state
    own = c if state is None else group("control", state) or [np.zeros_like(a) for a in c]
    if not len(x) == len(c) == len(own):
        raise ValueError("a control variate for each trainable tensor is missing")
    return c, own


def along_the_path(
    own: Sequence[Array], c: Sequence[Array], x: Sequence[Array], y: Sequence[Array], length: float
) -> list[Array]:
    """Option II: c_i - c + (x - y) / length, where length is K eta_l."""
    following = []
    for tensors in zip(own, c, x, y, strict=True):
        a, b, start, end = (np.asarray(tensor, np.float64) for tensor in tensors)
        following.append((a - b + (start - end) / length).astype(tensors[0].dtype))
    return following
