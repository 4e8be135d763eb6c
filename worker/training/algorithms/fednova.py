"""FedNova's client. Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization, arXiv 2007.07481, section 4.

A local solver adds its tau gradients up, y - x = -eta G a, with weights a of its own::

    SGD        a = (1, …, 1)                                    ||a||_1 = tau
    momentum   a = (1 - rho^tau, …, 1 - rho) / (1 - rho)
    proximal   a = ((1 - alpha)^(tau-1), …, 1), alpha = eta mu

With the update goes ||a||_1 (``fednova/norm``, float64). Here a is what the solver makes of one
gradient of 1 followed by zeros, which gives the paper's closed forms, and Nesterov's momentum and
combinations as well.
"""

from __future__ import annotations

import numpy as np

from fluffle.schemas import Tensors
from fluffle.schemas.experiment import TrainingTable
from fluffle.worker.training.algorithms.base import After, Turn
from fluffle.worker.training.algorithms.fedprox import FedProx


def norm(table: TrainingTable, steps: int) -> float:
    """||a||_1 of so many steps of SGD with this table's momentum and proximal term."""
    rho, pull = table.momentum, table.learning_rate * (table.proximal_mu or 0.0)
    moved = velocity = total = 0.0  # in units of eta
    for step in range(steps):
        gradient = (1.0 if step == 0 else 0.0) - pull * moved
        velocity = rho * velocity + gradient
        moved += rho * velocity + gradient if table.nesterov else velocity
        total += abs(moved)
    return total


class FedNova(FedProx):
    """Trains as ever, with a proximal term or none, and tells how far its gradients went."""

    def after(self, turn: Turn, local: Tensors) -> After:
        """||a||_1"""
        return After({"fednova/norm": np.array(norm(turn.plan.training, turn.steps))})
