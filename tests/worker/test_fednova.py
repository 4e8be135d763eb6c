"""FedNova (arXiv 2007.07481): what a solver makes of its gradients, and a whole run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, Plan, Tensors
from fluffle.schemas.experiment import TrainingTable
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.devices import Devices
from tests.worker.softmax import Point, gradient, steps_of

pytestmark = pytest.mark.tensorflow

SOLVERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "proximal": {"proximal_mu": 0.4},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "momentum and proximal": {"momentum": 0.6, "proximal_mu": 0.7},
}
RATE = 0.2


def table(solver: str) -> TrainingTable:
    return TrainingTable(optimizer="sgd", learning_rate=RATE, **SOLVERS[solver])


def moved(training: TrainingTable, gradients: list[Any]) -> list[Any]:
    """y - x after each step, given g(y) for each (Keras's SGD, the term mu (y - x) in g)."""
    y, velocity, path = 0.0 * gradients[0], 0.0, []
    for g in gradients:
        g = g + (training.proximal_mu or 0.0) * y
        velocity = training.momentum * velocity - RATE * g
        y = y + (training.momentum * velocity - RATE * g if training.nesterov else velocity)
        path.append(y)
    return path


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_norm_is_the_papers_closed_form(steps: int) -> None:
    from fluffle.worker.training.algorithms.fednova import norm

    rho, alpha = 0.9, RATE * 0.4
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert norm(table("sgd"), steps) == steps
    assert norm(table("momentum"), steps) == pytest.approx(momentum, rel=1e-12)
    proximal = (1 - (1 - alpha) ** steps) / alpha
    assert norm(table("proximal"), steps) == pytest.approx(proximal, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_norm_is_the_sum_of_the_weights_with_which_gradients_add_up(solver: str) -> None:
    from fluffle.worker.training.algorithms.fednova import norm

    # Given nine steps, and one gradient at a time that is not zero: its weight in the end
    training = table(solver)
    weights = [moved(training, list(row))[-1] / -RATE for row in np.eye(9)]
    # Then these weights carry any gradients to where the solver goes
    gradients = np.random.default_rng(1).normal(size=9)
    assert moved(training, list(gradients))[-1] == pytest.approx(-RATE * np.dot(weights, gradients))
    # And their sum of sizes is the norm
    assert norm(training, 9) == pytest.approx(np.abs(weights).sum(), rel=1e-12)


def by_hand(folder: Path, plan: Plan, start: Tensors) -> Point:
    """x after the rounds that the ledger tells of, from the paper's equations."""
    from fluffle.worker.tasks.registry import load_task
    from fluffle.worker.training.algorithms.fednova import norm

    task, devices = load_task(plan), Devices(plan)
    data, training = task.dataset(), plan.training
    x = [start["trainable/0"].astype(float), start["trainable/1"].astype(float)]
    ledger = Ledger(folder)
    for version in range(1, ledger.latest_version() + 1):
        trained = ledger.query("SELECT client, turn FROM updates WHERE version = ?", version)
        n = np.array([float(len(task.client_indices(client))) for client, _ in trained])
        directions, norms = [], []
        for client, turn in trained:
            epochs = devices.outcome(client, turn).epochs or training.epochs
            indices = task.client_indices(client)
            steps = steps_of(plan, client, turn, epochs, indices, version - 1)
            y = [a.copy() for a in x]
            velocity = [np.zeros_like(a) for a in x]
            for step in steps:
                for i, g in enumerate(gradient(y, data, step)):
                    g = g + (training.proximal_mu or 0.0) * (y[i] - x[i])
                    velocity[i] = training.momentum * velocity[i] - RATE * g
                y = [a + v for a, v in zip(y, velocity, strict=True)]
            norms.append(norm(training, len(steps)))
            directions.append([(b - a) / norms[-1] for a, b in zip(x, y, strict=True)])
        p = n / n.sum()
        tau_eff = float(p @ norms)
        x = [a + tau_eff * sum(p_k * d[i] for p_k, d in zip(p, directions, strict=True))
             for i, a in enumerate(x)]  # fmt: skip
    ledger.close()
    return x


@pytest.mark.parametrize("solver", ["sgd", "momentum and proximal"])
def test_a_whole_run_with_unequal_clients_and_stragglers_is_the_papers(
    tmp_path: Path, solver: str
) -> None:
    # Given clients with 5 to 90 examples each, half of whose turns do only some of four epochs
    from fluffle.worker.training.trainer import Trainer

    training = {"optimizer": "sgd", "learning_rate": RATE, "epochs": 4, "batch_size": 8}
    experiment = Experiment.model_validate(
        {
            "experiment": {"versions": 5},
            "task": {"name": "digits-lr", "clients": 40},
            "partition": {"kind": "power-law", "exponent": 1.2, "examples_per_client": 90},
            "training": {**training, **SOLVERS[solver]},
            "participation": {"mode": "cohort", "sampling_rate": 0.1},
            "aggregation": {"strategy": "fednova"},
            "evaluation": {"every_updates": 0},
            "devices": {"stragglers": 0.5},
        }
    )
    assert VirtualRun(experiment, tmp_path, run_id="run", slots=2).run() == "finished"
    plan = Plan.of(experiment, "delta")
    x = by_hand(tmp_path, plan, Trainer(plan).initial())
    state = Ledger(tmp_path).load().state
    assert state is not None
    for i in range(2):
        np.testing.assert_allclose(state[f"model/trainable/{i}"], x[i], atol=5e-6)
