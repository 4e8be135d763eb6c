"""A model's own train_step is what trains it; the GAN of docs/frameworks.md as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras

from fluffle.schemas import Experiment, Plan, UserError, tensors_sha256
from fluffle.worker.tasks import custom
from fluffle.worker.tasks.registry import TASKS, use
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.per_plan import make_trainer
from fluffle.worker.training.trial import check
from tests.docs import example

pytestmark = pytest.mark.tensorflow

X = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)


class Doubled(keras.Model):
    """Its step goes twice as far as SGD's, whatever the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1, use_bias=False)
        self.out.build((None, 3))
        self.built = True

    def call(self, x: Any) -> Any:
        return self.out(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x)[:, 0] - y) ** 2)
        (gradient,) = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply([2 * gradient], self.trainable_weights)
        return {"loss": loss}


class Doubling(Task):
    loss = "mean_squared_error"

    def model(self) -> keras.Model:
        return Doubled()

    def dataset(self) -> Examples:
        return Examples(X, X.sum(axis=1))

    test = dataset


def experiment_of(name: str, **training: Any) -> Experiment:
    tables = {
        "task": {"name": name, "clients": 2},
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 64, **training},
    }
    return Experiment.model_validate(tables)


def plan_of(name: str, **training: Any) -> Plan:
    return Plan.of(experiment_of(name, **training), "delta")


def test_its_own_step_is_taken_with_the_plans_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "doubling", Doubling)
    trainer = make_trainer(plan_of("doubling", momentum=0.9))
    base = trainer.initial()
    trainer.train(base, "0", 1)  # something that must leave no trace
    trained = trainer.train(base, "1", 1)
    # One batch: a single step along twice the gradient, momentum starting from nothing
    x, w = X[35:].astype(float), base["trainable/0"].astype(float)
    gradient = 2 * x.T @ (x @ w - x.sum(axis=1, keepdims=True)) / len(x)
    np.testing.assert_allclose(trained.tensors["trainable/0"], w - 0.2 * gradient, atol=1e-5)
    assert trainer.evaluate(trained.tensors)[0]["loss"] < trainer.evaluate(base)[0]["loss"]
    with pytest.raises(UserError, match="proximal_mu changes the gradients"):
        make_trainer(plan_of("doubling", proximal_mu=0.1))


def test_the_pages_gan_learns_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given the page's task, tried before a run begins
    (tmp_path / "points.py").write_text(example("docs/frameworks.md", "class Points(Task)"))
    monkeypatch.setenv(custom.FOLDER, str(tmp_path))
    use(None, None)
    check(experiment_of("points.py:Points"))
    plan = plan_of("points.py:Points", epochs=10, batch_size=30)
    one, other = make_trainer(plan), make_trainer(plan)
    # It is said once that this is slower
    assert sum("train_step()" in record.message for record in caplog.records) == 1
    # When two clients train in turn, twice, from a model that others have trained with
    base = one.initial()
    weights = base
    for turn in range(3):
        weights = one.train(weights, str(turn % 2), turn).tensors
    again = base
    other.train(base, "1", 9)
    for turn in range(3):
        again = other.train(again, str(turn % 2), turn).tensors
    # Then generator and critic have moved, the same way in every byte, and to the data
    assert tensors_sha256(weights) == tensors_sha256(again)
    assert all((weights[name] != base[name]).any() for name in base)
    assert one.evaluate(weights)[0]["loss"] < one.evaluate(base)[0]["loss"] / 4
