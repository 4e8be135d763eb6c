"""The compiled trainer, held against Keras's own training and against its promises."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.schemas import Experiment, Plan, Tensors, UserError, tensors_sha256
from fluffle.worker.tasks.registry import TASKS, MnistCnn, load_task
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.runtime import configure

configure(2)

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from fluffle.worker.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.tensorflow

EXAMPLES = 120


class Blobs(Task):
    """Three classes around three points, and a model with everything that has state."""

    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu", use_bias=False, kernel_regularizer="l2"),
                layers.BatchNormalization(),
                layers.Dense(3, activation="softmax", kernel_constraint="non_neg"),
            ]
        )

    def dataset(self) -> Examples:
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=EXAMPLES)
        x = 100 + 50 * np.eye(6)[y] + rng.normal(0, 20, (EXAMPLES, 6))
        return Examples(x.astype(np.uint8), y.astype(np.uint8))

    def test(self) -> Examples:
        return self.dataset()

    def preprocess(self, x: Any) -> Any:
        return tf.cast(x, tf.float32) / 255


class Noisy(Blobs):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.GaussianNoise(0.1),
                layers.Dense(32, activation="relu"),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
                layers.Dense(3, activation="softmax"),
            ]
        )


class Convolved(Noisy):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Reshape((6, 1)),
                layers.Conv1D(4, 3),
                layers.Dropout(0.5),
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        )


class Decorated(layers.Dense):
    @tf.function(autograph=False)
    def call(self, inputs: Any) -> Any:
        return super().call(inputs)


class Nested(Noisy):
    """Calls of functions inside the model: a recurrent loop, and a user's own ``tf.function``."""

    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Reshape((3, 2)),
                layers.GRU(4, dropout=0.1),
                Decorated(3, activation="softmax"),
            ]
        )


class Ones(Blobs):
    """The mean prediction of a linear model on ones: the gradient of every parameter is 1."""

    metrics = ()

    @staticmethod
    def loss(y: Any, predicted: Any) -> Any:
        return predicted[:, 0]

    def model(self) -> keras.Model:
        return keras.Sequential([keras.Input((6,)), layers.Dense(1)])

    def dataset(self) -> Examples:
        return Examples(np.ones((EXAMPLES, 6), np.uint8), np.zeros(EXAMPLES, np.uint8))

    def preprocess(self, x: Any) -> Any:
        return tf.cast(x, tf.float32)


class OneHot(Ones):
    """As ``Ones``, with one weight for each example: its gradient is 1 where the example is."""

    def model(self) -> keras.Model:
        return keras.Sequential([keras.Input((EXAMPLES,)), layers.Dense(1)])

    def dataset(self) -> Examples:
        return Examples(np.eye(EXAMPLES, dtype=np.uint8), np.zeros(EXAMPLES, np.uint8))


class Counting(layers.Layer):
    """Holds an integer weight that training does not touch, and one that it counts in."""

    def build(self, shape: Any) -> None:
        self.kept = self.add_weight(
            shape=(2,), dtype="int32", initializer="ones", trainable=False, autocast=False
        )
        self.steps = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, autocast=False
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.steps.assign(self.steps + 1)
        return inputs


class Counted(Blobs):
    def model(self) -> keras.Model:
        frozen = layers.Dense(4, trainable=False)
        return keras.Sequential([keras.Input((6,)), Counting(), frozen, layers.Dense(3, "softmax")])


class Uneven(Noisy):
    """Client k holds the first k examples; client 0 has none."""

    def client_indices(self, client: str) -> NDArray[np.int32]:
        return np.arange(int(client), dtype=np.int32)


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (Blobs, Noisy, Convolved, Nested, Ones, OneHot, Counted, Uneven):
        monkeypatch.setitem(TASKS, task.__name__, task)


def plan(task: str, clients: int = 4, evaluate: int | None = None, **training: Any) -> Plan:
    tables = {
        "task": {"name": task, "clients": clients},
        "training": training,
        "evaluation": {"examples": evaluate},
    }
    return Plan.of(Experiment.model_validate(tables), "delta")


def load(model: keras.Model, weights: Tensors) -> None:
    variables = [*model.trainable_weights, *model.non_trainable_weights]
    for variable, value in zip(variables, weights.values(), strict=True):
        variable.assign(value)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_generators_as_they_were() -> None:
    # Given generators in some state
    random.seed(1)
    before, numpy_before = random.random(), np.random.get_state()[1].tolist()
    random.seed(1)

    # When two trainers give their initial weights, one of them after having trained
    first, second = Trainer(plan("Noisy")), Trainer(plan("Noisy"))
    second.train(first.initial(), "0", 0)

    # Then they are the same, named by group in the model's order, without seed generators
    assert tensors_sha256(first.initial()) == tensors_sha256(second.initial())
    assert list(first.initial()) == [
        *(f"trainable/{i}" for i in range(6)),
        *(f"non_trainable/{i}" for i in range(2)),
    ]
    # And another seed gives others, and nobody else's draws have changed
    other = Trainer(plan("Noisy").model_copy(update={"seed": 7}))
    assert tensors_sha256(other.initial()) != tensors_sha256(first.initial())
    assert random.random() == before
    assert np.random.get_state()[1].tolist() == numpy_before


@pytest.mark.parametrize(
    ("training", "optimizer"),
    [
        ({"optimizer": "sgd"}, lambda: keras.optimizers.SGD(0.05)),
        ({"optimizer": "sgd", "momentum": 0.9}, lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
            lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        ),
        ({"optimizer": "Adam"}, lambda: keras.optimizers.Adam(0.05)),
        ({"optimizer": "rmsprop"}, lambda: keras.optimizers.RMSprop(0.05)),
        ({"optimizer": "adagrad"}, lambda: keras.optimizers.Adagrad(0.05)),
        ({"optimizer": "nadam"}, lambda: keras.optimizers.Nadam(0.05)),
    ],
)
def test_training_equals_keras_with_every_kind_of_optimizer(
    training: dict[str, Any], optimizer: Any
) -> None:
    # Given whole-client batches, so that the shuffle does not matter, and 5 epochs
    trainer = Trainer(plan("Blobs", batch_size=30, epochs=5, learning_rate=0.05, **training))
    base = trainer.initial()

    # When a client trains, after others did: their optimizer state must not show
    trainer.train(base, "0", 0)
    trained = trainer.train(base, "2", 1)

    # Then it has what Keras's own training gives: batch statistics, regularisers, constraints
    task = load_task(plan("Blobs"))
    model = task.model()
    load(model, base)
    model.compile(optimizer=optimizer(), loss=task.loss, metrics=["accuracy"])
    mine = task.client_indices("2")
    x, y = np.asarray(task.preprocess(task.dataset().x[mine])), task.dataset().y[mine]
    history = model.fit(x, y, epochs=5, batch_size=30, verbose=0).history
    expected = [*model.trainable_weights, *model.non_trainable_weights]
    for got, wanted in zip(trained.tensors.values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=2e-4, atol=2e-5)
    assert trained.examples == 30
    assert trained.metrics == pytest.approx({k: v[-1] for k, v in history.items()}, rel=1e-3)


@pytest.mark.parametrize(("size", "batch_size", "steps"), [(7, 4, 2), (3, 4, 1), (8, 4, 2)])
def test_the_last_batch_keeps_its_true_shape(
    monkeypatch: pytest.MonkeyPatch, size: int, batch_size: int, steps: int
) -> None:
    # Given a model whose every gradient is 1, and a client that batches do not divide
    monkeypatch.setattr(Ones, "client_indices", Uneven.client_indices)
    training = {"batch_size": batch_size, "epochs": 3, "optimizer": "sgd", "learning_rate": 0.5}
    trainer = Trainer(plan("Ones", **training))
    base = trainer.initial()

    # When it trains
    trained = trainer.train(base, str(size), 0).tensors

    # Then each step took the whole rate from weights and bias: a padded batch would take less
    for name, array in trained.items():
        np.testing.assert_allclose(base[name] - array, 0.5 * 3 * steps, rtol=1e-5)


@pytest.mark.parametrize(("size", "steps"), [(7, 5), (7, 4), (3, 5), (30, 5), (20, 5), (1, 1)])
def test_every_client_takes_as_many_steps_as_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, size: int, steps: int
) -> None:
    # Given a model whose every gradient is 1, and a client whose epochs are 1 to 8 batches of 4
    monkeypatch.setattr(Ones, "client_indices", Uneven.client_indices)
    trainer = Trainer(plan("Ones", batch_size=4, steps=steps, optimizer="sgd", learning_rate=0.5))
    base = trainer.initial()

    # When it trains
    trained = trainer.train(base, str(size), 0)

    # Then the model has moved by so many steps, and the update counts each example once
    for name, array in trained.tensors.items():
        np.testing.assert_allclose(base[name] - array, 0.5 * steps, rtol=1e-5)
    assert trained.examples == size


def test_steps_that_end_within_an_epoch_leave_the_others_of_it_out() -> None:
    # Given one weight for each example, and clients of 30
    trainer = Trainer(plan("OneHot", batch_size=5, steps=8, optimizer="sgd", learning_rate=1.0))
    base = trainer.initial()

    # When client 1 of 4 takes eight steps of 5: six are an epoch
    moved = (base["trainable/0"] - trainer.train(base, "1", 0).tensors["trainable/0"])[:, 0]

    # Then each of its examples has been used once, and ten of them twice
    used = np.rint(moved * 5).astype(int)
    np.testing.assert_allclose(moved, used / 5, atol=1e-5)
    assert sorted(used[30:60]) == [1] * 20 + [2] * 10
    assert not np.delete(used, np.arange(30, 60)).any()


def test_as_many_steps_as_epochs_have_give_the_same_bytes() -> None:
    # Given clients of 30 examples, in batches of 8
    by_epochs = Trainer(plan("Blobs", batch_size=8, epochs=3))
    by_steps = Trainer(plan("Blobs", batch_size=8, steps=12))

    # When one trains for three epochs, which are twelve steps
    base = by_epochs.initial()
    both = [trainer.train(base, "2", 5).tensors for trainer in (by_epochs, by_steps)]

    # Then it does not matter which of them the plan counts
    assert tensors_sha256(both[0]) == tensors_sha256(both[1])


def test_an_epoch_visits_each_example_of_the_client_once_and_no_other() -> None:
    # Given one weight for each example
    trainer = Trainer(plan("OneHot", batch_size=5, epochs=2, optimizer="sgd", learning_rate=1.0))
    base = trainer.initial()

    # When client 1 of 4 trains for two epochs in batches of 5
    moved = (base["trainable/0"] - trainer.train(base, "1", 0).tensors["trainable/0"])[:, 0]

    # Then its examples have been used twice, a fifth of a step each time, and others never
    expected = np.zeros(EXAMPLES)
    expected[30:60] = 2 / 5
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_integer_and_frozen_weights_survive() -> None:
    # Given a model with frozen weights and integers, one of which counts training steps
    trainer = Trainer(plan("Counted", batch_size=10, epochs=2))
    base = trainer.initial()
    base["non_trainable/0"] = np.array([2_000_000_011, -3], np.int32)

    # When a client of 30 examples trains
    tensors = trainer.train(base, "0", 0).tensors

    # Then what is not trained is as it was, and the counter counted 6 steps
    assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in base.items()}
    np.testing.assert_array_equal(tensors["non_trainable/0"], base["non_trainable/0"])
    assert tensors["non_trainable/1"] == 6
    np.testing.assert_array_equal(tensors["non_trainable/2"], base["non_trainable/2"])
    assert not np.array_equal(tensors["trainable/0"], base["trainable/0"])


@pytest.mark.parametrize("task", ["Noisy", "Convolved", "Nested"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_same_turn_gives_the_same_bytes_in_any_thread_whatever_was_trained_before(
    task: str, optimizer: str
) -> None:
    # Given three trainers of one plan
    settings = plan(task, batch_size=8, epochs=2, optimizer=optimizer)
    trainers = [Trainer(settings) for _ in range(3)]
    base = trainers[0].initial()
    found: dict[tuple[int, str, int], str] = {}

    # When each, in a thread of its own, trains and evaluates the same turns in another order
    def work(me: int) -> None:
        turns = [("0", 1), ("1", 1), ("0", 2), ("3", 0)]
        for client, turn in turns[me:] + turns[:me]:
            tensors = trainers[me].train(base, client, turn).tensors
            found[me, client, turn] = tensors_sha256(tensors)
            trainers[me].evaluate(tensors)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then a turn's bytes are the same everywhere, and no two turns have the same
    for client, turn in [("0", 1), ("1", 1), ("0", 2), ("3", 0)]:
        assert len({found[me, client, turn] for me in range(3)}) == 1
    assert len({digest for (me, _, _), digest in found.items() if me == 0}) == 4


def test_clients_of_any_size_share_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a task that says how often it is traced
    traces = []

    class Traced(Uneven):
        def preprocess(self, x: Any) -> Any:
            traces.append(1)
            return super().preprocess(x)

    monkeypatch.setitem(TASKS, "Traced", Traced)
    trainer = Trainer(plan("Traced", batch_size=16))
    base = trainer.initial()
    trainer.train(base, "1", 0)
    once = len(traces)

    # When clients of many sizes train
    for size in range(2, 60):
        trainer.train(base, str(size), size)

    # Then nothing has been traced again
    assert len(traces) == once


def test_what_cannot_be_trained_is_refused_and_says_why() -> None:
    trainer = Trainer(plan("Uneven"))
    base = trainer.initial()
    with pytest.raises(ValueError, match="client 0 has no examples"):
        trainer.train(base, "0", 0)
    with pytest.raises(ValueError, match=r"do not fit the model of Uneven: trainable/1 \(.*\) is"):
        trainer.train({**base, "trainable/1": np.zeros(5, np.float32)}, "3", 0)
    with pytest.raises(ValueError, match="non_trainable/1"):
        trainer.evaluate({k: v for k, v in base.items() if k != "non_trainable/1"})
    with pytest.raises(ValueError, match="trainable/0"):
        trainer.train({**base, "trainable/0": base["trainable/0"].astype(np.float64)}, "3", 0)
    blobs = Trainer(plan("Blobs"))
    with pytest.raises(ValueError, match="there is no client '4': they are 0 to 3"):
        blobs.train(blobs.initial(), "4", 0)
    misspelt = Trainer(plan("Blobs", optimizer="adamant"))
    with pytest.raises(UserError, match="'adamant' is neither sgd, adam"):
        misspelt.train(misspelt.initial(), "1", 0)
    with pytest.raises(UserError, match=r"no task 'nosuch': use one of .*mnist-cnn"):
        Trainer(plan("nosuch"))


@pytest.mark.parametrize("task", ["Blobs", "Convolved"])
def test_an_evaluation_is_what_keras_evaluates(task: str) -> None:
    # Given trained weights
    trainer = Trainer(plan(task, batch_size=10, epochs=3))
    weights = trainer.train(trainer.initial(), "0", 0).tensors

    # When they are evaluated
    metrics, examples = trainer.evaluate(weights)

    # Then loss, regularisers included, and accuracy are Keras's
    blobs = load_task(plan(task))
    model = blobs.model()
    load(model, weights)
    model.compile(loss=blobs.loss, metrics=["accuracy"])
    x, y = blobs.test()
    expected = model.evaluate(
        np.asarray(blobs.preprocess(x)), y, batch_size=EXAMPLES, verbose=0, return_dict=True
    )
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert examples == EXAMPLES
    # And as many examples as the plan says are used
    _, few = Trainer(plan(task, evaluate=50)).evaluate(weights)
    assert few == 50


def test_the_tasks_of_one_process_share_one_object() -> None:
    assert load_task(plan("Blobs")) is load_task(plan("Blobs", epochs=9))
    assert load_task(plan("Blobs")) is not load_task(plan("Blobs", clients=5))


def test_mnist_cnn_has_the_size_that_its_paper_gives() -> None:
    assert MnistCnn(1, plan("mnist-cnn").partition, 0).model().count_params() == 1_663_370
