"""Partial work and the proximal term (FedProx, arXiv 1812.06127) inside the compiled loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, Plan, Tensors, tensors_sha256
from fluffle.simulation.virtual import VirtualRun

pytestmark = pytest.mark.tensorflow


def plan(**training: Any) -> Plan:
    document = {
        "task": {"name": "mnist-cnn", "clients": 3000},
        "training": {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 4, **training},
    }
    return Plan.of(Experiment.model_validate(document), "weights")


def test_the_proximal_term_is_in_every_gradient() -> None:
    # Given one batch of 20 examples, so that the order of examples does not matter
    from fluffle.worker.training.trainer import Trainer

    trainer = Trainer(plan(proximal_mu=2.0))
    base = trainer.initial()
    # When a client trains for four epochs
    ours = trainer.train(base, "7", 1).tensors
    # Then every step was along grad + mu (w - w_base)
    expected = by_hand(base, mu=2.0, steps=4)
    without = by_hand(base, mu=0.0, steps=4)
    for name, values in expected.items():
        np.testing.assert_allclose(ours[name], values, rtol=2e-4, atol=2e-6)
    assert distance(expected, base) < 0.9 * distance(without, base)


def by_hand(base: Tensors, mu: float, steps: int) -> Tensors:
    import keras
    import tensorflow as tf

    from fluffle.worker.tasks.registry import load_task

    task = load_task(plan())
    model = task.model()
    variables = model.trainable_variables
    start = [tf.constant(array) for array in base.values()]
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    chosen = task.client_indices("7")
    x = tf.constant(task.dataset().x[chosen], tf.float32) / 255
    y = task.dataset().y[chosen]
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x)))
        gradients = tape.gradient(loss, [v.value for v in variables])
        for variable, gradient, anchor in zip(variables, gradients, start, strict=True):
            variable.assign(variable - 0.05 * (gradient + mu * (variable - anchor)))
    return {name: v.numpy() for name, v in zip(base, variables, strict=True)}


def distance(one: Tensors, other: Tensors) -> float:
    return float(sum(np.square(one[name] - other[name]).sum() for name in one) ** 0.5)


def test_mu_of_zero_is_fedavg_to_the_byte_and_epochs_are_what_is_asked_for() -> None:
    from fluffle.worker.training.trainer import Trainer

    plain, zero, short = Trainer(plan()), Trainer(plan(proximal_mu=0.0)), Trainer(plan(epochs=2))
    base = plain.initial()
    reference = tensors_sha256(plain.train(base, "7", 1).tensors)
    assert tensors_sha256(zero.train(base, "7", 1).tensors) == reference
    two = tensors_sha256(plain.train(base, "7", 1, epochs=2).tensors)
    assert two == tensors_sha256(short.train(base, "7", 1).tensors) != reference


def test_it_goes_with_fedbuff_and_there_too_mu_of_zero_is_no_proximal_term(tmp_path: Path) -> None:
    # Given FedBuff with stale updates of clients whose data differ
    weights = {}
    for mu in (None, 0.0, 1.0):
        tables = {
            "experiment": {"versions": 8},
            "task": {"name": "digits-lr", "clients": 8},
            "partition": {"kind": "similarity", "similarity": 0.0, "examples_per_client": 40},
            "training": {
                **{"optimizer": "sgd", "learning_rate": 0.3, "epochs": 4, "batch_size": 10},
                **({} if mu is None else {"proximal_mu": mu}),
            },
            "participation": {"concurrency": 4},
            "aggregation": {"strategy": "fedbuff", "quorum": 2},
            "evaluation": {"every_updates": 0},
            "devices": {"delay": "exponential", "delay_s": 5.0},
        }
        folder = tmp_path / str(mu)
        run = VirtualRun(Experiment.model_validate(tables), folder, run_id="run", slots=1)
        assert run.run() == "finished"
        ledger = Ledger(folder)
        assert ledger.count("updates WHERE staleness > 0") > 0
        rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
        weights[mu] = [sha for (sha,) in rows]
        ledger.close()
    # Then every version is the same without the term and with mu = 0, and none with mu = 1
    assert weights[None] == weights[0.0]
    assert not set(weights[1.0][1:]) & set(weights[0.0])
