"""Partial work and the proximal term (FedProx, arXiv 1812.06127) inside the compiled loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas import Experiment, Plan, Tensors, tensors_sha256

pytestmark = pytest.mark.tensorflow


def plan(**training: Any) -> Plan:
    document = {
        "task": {"name": "mnist-cnn", "clients": 3000},
        "training": {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 4, **training},
    }
    return Plan.of(Experiment.model_validate(document), "weights")


def test_the_proximal_term_is_in_every_gradient() -> None:
    # Given one batch of 20 examples, so that the order of examples does not matter
    from worker.trainer import Trainer

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

    from worker.tasks import load_task

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
    from worker.trainer import Trainer

    plain, zero, short = Trainer(plan()), Trainer(plan(proximal_mu=0.0)), Trainer(plan(epochs=2))
    base = plain.initial()
    reference = tensors_sha256(plain.train(base, "7", 1).tensors)
    assert tensors_sha256(zero.train(base, "7", 1).tensors) == reference
    two = tensors_sha256(plain.train(base, "7", 1, epochs=2).tensors)
    assert two == tensors_sha256(short.train(base, "7", 1).tensors) != reference
