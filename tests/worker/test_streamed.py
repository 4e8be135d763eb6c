"""Training on a stream, held against the same examples in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.registry import TASKS
from fluffle.worker.tasks.task import Examples, StreamedTask, Task
from fluffle.worker.training.per_plan import make_trainer
from fluffle.worker.training.runtime import configure

configure(2)

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from fluffle.worker.training.seeds import Streams, seeds_of  # noqa: E402
from fluffle.worker.training.trial import try_out  # noqa: E402

pytestmark = pytest.mark.tensorflow

SEED, TURN, EPOCHS = 42, 3, 3
_RNG = np.random.default_rng(0)
Y = _RNG.integers(3, size=70)
X = (np.eye(6)[Y] + _RNG.normal(0, 0.3, (70, 6))).astype(np.float32)


class InMemory(Task):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu"),
                layers.BatchNormalization(),
                layers.Dropout(0.3),
                layers.Dense(3, activation="softmax"),
            ]
        )

    def dataset(self) -> Examples:
        return Examples(X, Y)

    def test(self) -> Examples:
        return Examples(X, Y)


class Streamed(StreamedTask):
    """The same, in the order in which a trainer in memory shuffles them."""

    model, test = InMemory.model, InMemory.test

    def stream(self, client: str, seed: int) -> tf.data.Dataset:
        drawn = Streams(SEED, client, TURN, 0).seeds("order", 2)[0]
        numbers = [int(seeds_of(f"{drawn}:{n}", 1)[0, 0]) & 0x7FFFFFFF for n in range(EPOCHS)]
        number = numbers.index(seed) if seed in numbers else 0
        folded = tf.random.experimental.stateless_fold_in(tf.constant(drawn), number)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(Y)), folded, alg="philox"
        ).numpy()
        return tf.data.Dataset.from_tensor_slices((X[order], Y[order]))


class Empty(Streamed):
    def stream(self, client: str, seed: int) -> tf.data.Dataset:
        return super().stream(client, seed).take(0)


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (InMemory, Streamed, Empty):
        monkeypatch.setitem(TASKS, task.__name__, task)


def plan(name: str, **training: Any) -> Plan:
    tables = {
        "experiment": {"seed": SEED},
        "task": {"name": name, "clients": 1},
        "training": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.01, **training},
    }
    return Plan.of(Experiment.model_validate(tables), "delta")


@pytest.mark.parametrize("training", [{}, {"optimizer": "sgd", "proximal_mu": 0.1}])
def test_it_gives_what_the_same_batches_give_in_memory(training: dict[str, Any]) -> None:
    # Given the same 70 examples in the same order: four batches of 16, and a short one
    there, here = (make_trainer(plan(name, **training)) for name in ("InMemory", "Streamed"))
    base = there.initial()
    # When each trains, after having trained something else
    here.train(base, "0", TURN)
    expected, found = there.train(base, "0", TURN), here.train(base, "0", TURN)
    # Then weights and statistics, metrics and number of examples agree
    assert found.examples == expected.examples == 70
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-5)
    for name, tensor in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
    assert any((found.tensors[name] != base[name]).any() for name in base)
    assert here.evaluate(found.tensors)[0].keys() == found.metrics.keys()


def test_a_stream_without_examples_is_named() -> None:
    trainer = make_trainer(plan("Empty"))
    with pytest.raises(ValueError, match="client 0 has no examples"):
        trainer.train(trainer.initial(), "0", TURN)
    with pytest.raises(UserError, match=r"dataset\(\) gave no examples"):
        try_out(Empty(1, PartitionTable(), SEED))


def test_one_batch_of_it_is_tried_before_a_run_begins() -> None:
    try_out(Streamed(1, PartitionTable(), SEED))
    with pytest.raises(ValueError, match="there is no client '1'"):
        Streamed(1, PartitionTable(), SEED).client_indices("1")


def test_scaffold_and_fednova_say_that_they_cannot() -> None:
    asking = plan("Streamed").model_copy(update={"asks": "normaliser"})
    with pytest.raises(UserError, match="they take no StreamedTask"):
        make_trainer(asking)
