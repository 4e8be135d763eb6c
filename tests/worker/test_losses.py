"""Losses and metrics are Keras's own: regression, several labels, text; and mistakes in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.registry import TASKS
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.runtime import configure

configure(2)

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from fluffle.worker.training.trainer import Trainer  # noqa: E402
from fluffle.worker.training.trial import try_out  # noqa: E402

pytestmark = pytest.mark.tensorflow

LINES = ("the sun is warm", "a warm and sunny day", "rain and a cold wind", "the wind is cold")


class Prices(Task):
    """Regression: one number."""

    loss = "mse"
    metrics = ("mean_absolute_error",)

    def model(self) -> keras.Model:
        return keras.Sequential([keras.Input((3,)), layers.Dense(1)])

    def dataset(self) -> Examples:
        x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
        return Examples(x, (x @ [1, -2, 3] + 5).astype(np.float32))

    def test(self) -> Examples:
        return self.dataset()


class Symptoms(Prices):
    """Several labels for each example."""

    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = (
        keras.metrics.BinaryAccuracy(threshold=0.0),
        keras.metrics.AUC(multi_label=True, from_logits=True, name="auc"),
    )

    def model(self) -> keras.Model:
        return keras.Sequential([keras.Input((3,)), layers.Dense(3)])

    def dataset(self) -> Examples:
        x = super().dataset().x
        return Examples(x, (x > 0).astype(np.uint8))


class Text(Prices):
    """Bytes of sentences of any length, embedded; an accuracy that nobody has asked for."""

    loss = "sparse_categorical_crossentropy"
    metrics = None

    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(256, 8, mask_zero=True),
                layers.GRU(16),
                layers.Dense(2, activation="softmax"),
            ]
        )

    def dataset(self) -> Examples:
        rows = [np.frombuffer(line.ljust(24, "\0").encode(), np.uint8) for line in LINES]
        return Examples(np.array(rows * 20), np.array([0, 0, 1, 1] * 20, np.uint8))

    def preprocess(self, x: Any) -> Any:
        return tf.cast(x, tf.int32)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Task]], Plan]:
    def made(task: type[Task]) -> Plan:
        monkeypatch.setitem(TASKS, task.__name__, task)
        tables = {
            "task": {"name": task.__name__, "clients": 1},
            "training": {"epochs": 12, "batch_size": 16, "learning_rate": 0.03},
        }
        return Plan.of(Experiment.model_validate(tables), "delta")

    return made


@pytest.mark.parametrize(
    ("task", "metric", "good"),
    [
        (Prices, "mean_absolute_error", lambda value: value < 0.5),
        (Symptoms, "auc", lambda value: value > 0.98),
        (Symptoms, "accuracy", lambda value: value > 0.95),
        (Text, "accuracy", lambda value: value > 0.95),
    ],
)
def test_it_learns_and_is_measured_by_its_own_metrics(
    plan: Callable[[type[Task]], Plan],
    task: type[Task],
    metric: str,
    good: Callable[[float], bool],
) -> None:
    trainer = Trainer(plan(task))
    trained = trainer.train(trainer.initial(), "0", 0)
    before, _ = trainer.evaluate(trainer.initial())
    after, _ = trainer.evaluate(trained.tensors)
    assert after["loss"] < before["loss"] / 2
    assert good(after[metric]), after
    # And what a client says of its training goes by the same names
    assert set(trained.metrics) == set(after)


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (None, {"loss"}),
        ((), {"loss"}),
        ("mae", {"loss", "mae"}),
        ((keras.metrics.RootMeanSquaredError(),), {"loss", "root_mean_squared_error"}),
        ((lambda y, predicted: tf.abs(y - predicted[:, 0]),), {"loss", "lambda"}),
    ],
)
def test_a_regression_has_no_accuracy(
    plan: Callable[[type[Task]], Plan], metrics: Any, names: set[str]
) -> None:
    task = type(f"Measured by {names}", (Prices,), {"metrics": metrics})
    trainer = Trainer(plan(task))
    assert set(trainer.evaluate(trainer.initial())[0]) == names


def changed(**attributes: Any) -> Task:
    task = type("Changed", (Prices,), attributes)
    return task(1, PartitionTable(), 42)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"loss": "mean_squared_eror"}, "no loss 'mean_squared_eror': did you mean 'mean_squared"),
        ({"loss": "whatever"}, "Keras has no loss 'whatever': https://keras.io/api"),
        ({"metrics": ("acuracy",)}, "Keras has no metric 'acuracy': did you mean 'accuracy'?"),
        ({"metrics": "mean_absolut_error"}, "did you mean 'mean_absolute_error'?"),
        ({"model": lambda self: None}, "model() gave nothing: it has to give a keras.Model"),
        (
            {"model": lambda self: keras.Sequential([layers.Dense(1)])},
            "model() gave a model without weights",
        ),
        ({"dataset": lambda self: ([1], [2], [3])}, "dataset() gave a tuple of 3: let it give"),
        ({"test": lambda self: Examples(np.ones((4, 3)), np.ones(5))}, "test(): 4 examples in x"),
        ({"test": lambda self: Examples(np.ones((0, 3)), np.ones(0))}, "test() gave no examples"),
        (
            {
                "loss": "categorical_crossentropy",
                "model": lambda self: keras.Sequential([keras.Input((3,)), layers.Dense(4)]),
            },
            "The model gives float32[4] for an example, y has float32[]: Arguments `target` and",
        ),
    ],
)
def test_a_mistake_is_named_before_a_run_begins(attributes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        try_out(changed(**attributes))


def test_what_is_right_goes_through() -> None:
    for task in (Prices, Symptoms, Text):
        try_out(task(1, PartitionTable(), 42))
