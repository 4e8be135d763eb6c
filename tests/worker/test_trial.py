"""What a task's trial finds before a run begins, in one line; and what it lets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from keras import layers

from fluffle import Examples, StreamedTask, Task
from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.schemas.user_code import load_module
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.partitions import partition
from fluffle.worker.tasks.registry import TASKS, load_task
from fluffle.worker.training.streamed import StreamingTrainer
from fluffle.worker.training.trainer import Trainer
from fluffle.worker.training.trial import try_once, try_out
from tests.worker.models import X, Y

pytestmark = [pytest.mark.tensorflow]


class Plain(Task):
    """Two classes of four numbers."""

    def model(self) -> keras.Model:
        """One layer."""
        last = layers.Dense(2, activation="softmax")
        return keras.Sequential([keras.Input((4,)), last])

    def dataset(self) -> Examples:
        """All examples."""
        return Examples(X, Y)

    test = dataset


def changed(**attributes: Any) -> type[Task]:
    return type("Mine", (Plain,), {"__module__": __name__} | attributes)


def made(task: type[Task]) -> Task:
    return task.of(TaskTable(name="x", clients=2), PartitionTable(), 42)


def trainer(task: type[Task], **training: Any) -> Trainer:
    TASKS[task.__name__] = task
    tables = {
        "task": {"name": task.__name__, "clients": 2},
        "training": {"batch_size": 8, "learning_rate": 0.01} | training,
        "experiment": {"seed": id(task) % 2**31},  # tasks are kept by their tables
    }
    plan = Plan.of(Experiment.model_validate(tables), "delta")
    kind = StreamingTrainer if issubclass(task, StreamedTask) else Trainer
    return kind(plan)


def of(*layers_: Any) -> Any:
    return lambda self: keras.Sequential([keras.Input((4,)), *layers_])


def _frozen(self: Any) -> keras.Model:
    model = Plain.model(self)
    model.trainable = False
    return model


class Remembers(layers.Layer):
    """Counts calls in a variable that Keras does not know."""

    def build(self, shape: Any) -> None:
        """Make it."""
        self.calls = [tf.Variable(0.0)].pop
        object.__setattr__(self, "hidden", tf.Variable(0.0, name="hidden"))

    def call(self, x: Any) -> Any:
        """The outputs."""
        return x + 0 * self.hidden.assign_add(1.0)


def _two_outputs(self: Any) -> keras.Model:
    i = keras.Input((4,))
    return keras.Model(i, [layers.Dense(1)(i), layers.Dense(1)(i)])


LABELS = np.where(np.arange(len(Y)) == 5, 2, Y)
HOLED = Examples(np.where(np.arange(len(X))[:, None] == 7, np.nan, X).astype("float32"), Y)
ERRORS = tuple(keras.metrics.MeanAbsoluteError(name=f"error_{k}") for k in range(70))


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"model": _frozen}, "no trainable weights"),
        (
            {
                "model": of(
                    layers.Dense(2, activation="softmax"),
                    layers.Lambda(lambda v: keras.ops.stop_gradient(v)),
                )
            },
            "no gradient",
        ),
        ({"dataset": lambda self: Examples(X, LABELS)}, "example 5 has the label 2"),
        ({"test": lambda self: Examples(X, LABELS)}, "labels are 0 to 1"),
        (
            {"dataset": lambda self: Examples(X, np.array(["cat", "dog"])[Y])},
            "dataset(): y is text ('",
        ),
        ({"dataset": lambda self: Examples(X[:, :3], Y)}, "the model does not take float32[3]"),
        ({"dataset": lambda self: Examples([X, X[:5]], Y)}, "32 examples in x and 5 in x[1]"),
        ({"dataset": lambda self: Examples([[1.0], [1.0, 2.0]], [0, 1])}, "pad_sequences"),
        ({"dataset": lambda self: {"x": X}}, "dataset() gave a dict: let it give Examples"),
        ({"model": _two_outputs, "loss": "mse"}, "several outputs, 2, and y is 1"),
        ({"model": of(Remembers(), layers.Dense(2))}, "a variable that is no weight"),
        ({"loss": "mse", "metrics": ERRORS, "model": of(layers.Dense(1))}, "too many metrics"),
        (
            {
                "metrics": (keras.metrics.MeanAbsoluteError(name="a" * 65),),
                "loss": "mse",
                "model": of(layers.Dense(1)),
            },
            "more than 64 letters",
        ),
    ],
)
def test_it_is_refused(attributes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        try_out(made(changed(**attributes)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whoever_trains_tries_a_task_of_others_once() -> None:
    built = []

    def model(self: Task) -> keras.Model:
        built.append(1)
        return Plain.model(self)

    def refuse(self: Task) -> Examples:
        raise FileNotFoundError("no test examples at a worker")

    # Given a task at a worker, which has training examples alone
    task = made(changed(model=model, test=refuse))
    # When its slots try it, then its model was built for that once
    try_once(task)
    try_once(task)
    assert len(built) == 1
    # And what cannot be trained is refused as often as it is tried
    hidden = made(changed(model=of(Remembers(), layers.Dense(2)), test=refuse))
    for _ in range(2):
        with pytest.raises(UserError, match="a variable that is no weight"):
            try_once(hidden)
    # And tasks that come with Fluffle are not built for it
    ours = TASKS["mnist-mlp"].of(TaskTable(name="mnist-mlp"), PartitionTable(), 42)
    ours.model = model.__get__(ours)  # type: ignore[method-assign]
    try_once(ours)
    assert len(built) == 1


def test_a_target_that_would_never_apply() -> None:
    regression = changed(loss="mse", metrics=("mae",), model=of(layers.Dense(1)))
    with pytest.raises(UserError, match=r"target_accuracy would never apply.*it has loss, mae"):
        try_out(made(regression), wants_accuracy=True)
    try_out(made(Plain), wants_accuracy=True)


def test_a_pair_of_arrays_will_do() -> None:
    task = made(changed(dataset=lambda self: (X, Y), test=lambda self: (X, Y)))
    try_out(task)
    assert len(task.client_indices("1")) == 16


def test_inputs_without_numbers_are_named_and_not_the_learning_rate() -> None:
    holed = trainer(changed(dataset=lambda self: HOLED))
    with pytest.raises(UserError, match=r"test_trial.py: dataset\(\): the inputs of example 7"):
        holed.train(holed.initial(), "0", 1)
    holed.train(holed.initial(), "1", 1)  # who has it not
    holed = trainer(changed(test=lambda self: HOLED))
    with pytest.raises(UserError, match=r"test\(\): the inputs of example 7 hold NaN"):
        holed.evaluate(holed.initial())


class Above(keras.metrics.Metric):
    """A metric with an argument and no get_config."""

    def __init__(self, threshold: float, **named: Any) -> None:
        super().__init__(**named)
        self.threshold = threshold
        self.hits = self.add_variable((), initializer="zeros", name="hits")
        self.all = self.add_variable((), initializer="zeros", name="all")

    def update_state(self, y: Any, predicted: Any, sample_weight: Any = None) -> None:
        """Count."""
        self.hits.assign_add(tf.reduce_sum(tf.cast(predicted[:, 1] > self.threshold, "float32")))
        self.all.assign_add(tf.cast(tf.shape(predicted)[0], "float32"))

    def result(self) -> Any:
        """The share."""
        return self.hits / self.all


def test_metrics_of_ones_own_keep_their_arguments_and_counts_apart() -> None:
    # Given two trainers of a task with two metrics of one class
    metrics = (Above(2.0, name="never"), Above(-1.0, name="always"), "accuracy")
    first, second = (trainer(changed(metrics=metrics)) for _ in range(2))
    # Then each counts what it sees, by the arguments that were given
    for one in (first, second, first):
        measured, _ = one.evaluate(one.initial())
        assert (measured["never"], measured["always"]) == (0.0, 1.0)
        assert 0 < measured["accuracy"] <= 1


def test_a_metric_has_one_name_in_every_trainer() -> None:
    # Given names that Keras makes up, and counts by process
    kind = changed(metrics=(keras.metrics.TruePositives, keras.metrics.TruePositives(0.7)))
    kind.loss, kind.model = "binary_crossentropy", of(layers.Dense(1, activation="sigmoid"))
    for _ in range(2):
        model = made(kind).model()
        compile_model(made(kind), model)
        model.compute_metrics(None, Y[:4, None], model(X[:4]))
        assert list(model.get_metrics_result()) == ["loss", "true_positives", "true_positives_1"]


def test_a_metric_of_several_values_has_a_name_for_each() -> None:
    scores = keras.metrics.F1Score(average=None, name="f1")
    one_hot = Examples(X, np.eye(2, dtype="float32")[Y])
    task = changed(metrics=(scores,), loss="categorical_crossentropy", dataset=lambda self: one_hot)
    task.test = task.dataset  # type: ignore[method-assign]
    one = trainer(task)
    measured, _ = one.evaluate(one.initial())
    assert set(measured) == {"loss", "f1_0", "f1_1"}


@pytest.mark.parametrize("shape", ["column", "one-hot"])
def test_labels_of_any_shape_are_dealt_out_by_label(shape: str) -> None:
    y = np.arange(60) % 3
    shaped = y[:, None] if shape == "column" else np.eye(3, dtype="float32")[y]
    for kind in ("shards", "dirichlet", "similarity"):
        table = PartitionTable(kind=kind)  # type: ignore[arg-type]
        expected, found = (partition(table, labels, 4, 42) for labels in (y, shaped))
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]


def test_class_and_sample_weights_weigh_as_in_fit() -> None:
    # Given class 1 and the second half of the examples left out by their weights
    halves = (np.arange(len(Y)) < 16).astype("float32")
    task = changed(class_weight={1: 0.0}, sample_weights=lambda self: halves)
    whole = {"epochs": 1, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.5}
    one = trainer(task, **whole)
    initial = one.initial()
    trained = one.train(initial, "a-site", 1)
    # Then a step is that of Keras's fit with these weights
    model = load_task(one._plan).model()
    model.set_weights([initial[k] for k in ("trainable/0", "trainable/1")])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=32, sample_weight=halves * (Y == 0), verbose=0)
    for key, weight in zip(("trainable/0", "trainable/1"), model.get_weights(), strict=True):
        np.testing.assert_allclose(trained.tensors[key], weight, atol=1e-6)


def test_mixed_float16_learns_as_fit_does() -> None:
    # Given targets of 1e-6, whose gradients are below what float16 holds
    y = (X.sum(axis=1) * 2e-6).astype("float32")

    def model(self: Any) -> keras.Model:
        i = keras.Input((4,))
        o = layers.Dense(1, kernel_initializer="zeros", dtype="mixed_float16")(i)
        made_: keras.Model = keras.Model(i, layers.Activation("linear", dtype="float32")(o))
        made_.dtype_policy = keras.DTypePolicy("mixed_float16")
        return made_

    task = changed(loss="mse", metrics=(), model=model, dataset=lambda self: Examples(X, y))
    task.test = task.dataset  # type: ignore[method-assign]
    one = trainer(task, epochs=60, batch_size=32, learning_rate=1e-7)
    trained = one.train(one.initial(), "a-site", 1)
    # Then most of the error goes
    assert one.evaluate(trained.tensors)[0]["loss"] < 0.5 * float(np.mean(np.square(y)))


class Ragged(StreamedTask):
    """Sequences of any length, one by one."""

    def model(self) -> keras.Model:
        """An embedding and a mean."""
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(50, 4, mask_zero=True),
                layers.GRU(4),
                layers.Dense(2, activation="softmax"),
            ]
        )

    def stream(self, client: str, seed: int) -> tf.data.Dataset:
        """Two to six words."""

        def rows() -> Any:
            rng = np.random.default_rng([seed, 1])
            for n in range(20):
                yield rng.integers(1, 50, size=2 + n % 5), n % 2

        signature = (tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32))
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    def test(self) -> Examples:
        """Padded."""
        return Examples(np.ones((8, 6), np.int32), np.arange(8, dtype=np.int32) % 2)


def test_a_stream_of_any_length_is_padded_by_the_batch() -> None:
    try_out(made(Ragged))
    one = trainer(Ragged)
    assert one.train(one.initial(), "0", 1).examples == 20


@pytest.mark.parametrize(
    "signature",
    [
        "self",
        "self, clients, partition, seed",
        "self, *given",
        "self, **named",
        "self, seed",
        "self, a, b, c",
        "self, extra=3",
    ],
)
def test_an_init_of_ones_own(signature: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def __init__({signature}):\n    self.mine = True", space)
    task = made(changed(__init__=space["__init__"]))
    assert (task.clients, task.seed, task.mine) == (2, 42, True)  # type: ignore[attr-defined]


def test_an_init_that_wants_something_else_is_named() -> None:
    space: dict[str, Any] = {}
    exec("def __init__(self, path, rate):\n    pass", space)
    with pytest.raises(UserError, match=r"Mine.__init__\(path, rate\) wants others"):
        made(changed(__init__=space["__init__"]))


SPAWNING = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def read(part):
    return part * 10

def everything(method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(read, range(3)))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_file_may_start_processes(tmp_path: Path, method: str) -> None:
    path = tmp_path / "reading.py"
    path.write_text(SPAWNING)
    assert load_module(path).everything(method) == [0, 10, 20]
