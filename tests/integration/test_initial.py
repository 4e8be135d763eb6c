"""``--initial``: version 0 from a Keras model, from arrays, from another run's weights."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.service import AggregatorService
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.export import export
from fluffle.initial import fitted, initial_weights
from fluffle.running import forget_unfinished
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.extensions import FOLDER
from fluffle.worker.tasks import registry as tasks
from tests.integration.processes import Start, verified

pytestmark = pytest.mark.tensorflow

TASK = """
import numpy as np
from fluffle import Examples, Task


class Flowers(Task):
    def model(self):
        import keras
        return keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(6, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(5, activation="relu"),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )

    def dataset(self):
        x = np.random.default_rng(1).normal(size=(90, 4)).astype("float32")
        return Examples(x, x[:, :3].argmax(axis=1))

    test = dataset
"""
FILE = """
[experiment]
versions = 1
[task]
name = "flowers.py:Flowers"
clients = 3
"""
#: The task's weights, in their order on the way.
PATHS = {
    "dense/kernel": "trainable/0",
    "dense/bias": "trainable/1",
    "batch_normalization/gamma": "trainable/2",
    "batch_normalization/beta": "trainable/3",
    "dense_1/kernel": "trainable/4",
    "dense_1/bias": "trainable/5",
    "dense_2/kernel": "trainable/6",
    "dense_2/bias": "trainable/7",
    "batch_normalization/moving_mean": "non_trainable/0",
    "batch_normalization/moving_variance": "non_trainable/1",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with its task."""
    (tmp_path / "flowers.py").write_text(TASK)
    (tmp_path / "flowers.toml").write_text(FILE)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    tasks.use(None, None)
    return tmp_path


def experiment(**tables: Any) -> Experiment:
    return Experiment.model_validate(
        {"task": {"name": "flowers.py:Flowers", "clients": 3}, **tables}
    )


def saved(path: Path, outputs: int, inputs: int = 4, dtype: str = "float32") -> dict[str, Any]:
    """A model file with weights of its own; its weights by path."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(6, activation="relu", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Dense(5, activation="relu", dtype=dtype),
            layers.Dense(outputs, activation="softmax", dtype=dtype),
        ]
    )
    rng = np.random.default_rng(7)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    model.compile("adam", "mse")  # as people save them: the optimizer's weights are not the model's
    model.save(path)
    order = sorted(PATHS.values(), key=lambda name: name.startswith("non"))
    weights = [*model.trainable_weights, *model.non_trainable_weights]
    return {name: np.asarray(w.value) for name, w in zip(order, weights, strict=True)}


def seeded(of: Experiment) -> dict[str, Any]:
    """The task's own weights of version 0."""
    from fluffle.schemas import Plan
    from fluffle.worker.training.trainer import Trainer

    return Trainer(Plan.of(of, "delta")).initial()


def test_a_run_begins_with_a_keras_models_weights_to_the_bit(start: Start, folder: Path) -> None:
    # Given a model that somebody has saved, whose layers Keras has named in another process
    theirs = saved(folder / "theirs.keras", outputs=3)
    # When a run begins with it
    out = folder / "out"
    run = start(
        *("run", folder / "flowers.toml", "--clock", "virtual", "--out", out),
        *("--initial", folder / "theirs.keras"),
    )
    assert run.wait() == 0, run.output
    # Then version 0 is that model, to the bit, and nothing had to be said
    first = np.load(export(out, "npz", "0", None))
    assert set(first.files) == set(PATHS.values())
    for name in first.files:
        np.testing.assert_array_equal(first[name], theirs[name])
    assert "kept the task's" not in run.output
    # And the run is one that can be verified
    verified(start, out)
    # And its arrays begin another, where they are as exact
    again = initial_weights(out / "version-0.npz", experiment())
    for name, array in fitted(again, experiment()).items():
        np.testing.assert_array_equal(array, theirs[name])


def test_a_head_that_differs_keeps_the_tasks_weights_and_is_said_by_layer(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a model for ten classes, where the task has three
    theirs = saved(folder / "ten.keras", outputs=10)
    # When version 0 is made of it
    with caplog.at_level(logging.WARNING):
        found = initial_weights(folder / "ten.keras", experiment())
    # Then the body is the file's, the head the task's with the run's seed
    own = seeded(experiment())
    head = {PATHS["dense_2/kernel"], PATHS["dense_2/bias"]}
    assert found.keys() == own.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, own[name] if name in head else theirs[name])
    # And each is said
    ten = "--initial ten.keras: dense_2"
    assert [record.getMessage() for record in caplog.records] == [
        f"{ten}/kernel: (5, 10) in the file, (5, 3) in the task: kept the task's",
        f"{ten}/bias: (10,) in the file, (3,) in the task: kept the task's",
    ]


def test_what_is_frozen_or_personal_is_not_taken_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given groups of weights, and a file of another precision
    theirs = saved(folder / "half.keras", outputs=3, dtype="float16")
    groups = experiment(weights={"freeze": ["dense/*"], "keep": ["dense_2/*"]})
    # When version 0 is made of it
    with caplog.at_level(logging.WARNING):
        found = initial_weights(folder / "half.keras", groups)
    # Then what travels is the file's, under its path and in the task's dtype
    name = PATHS["dense_1/kernel"]
    np.testing.assert_array_equal(found["trainable/dense_1/kernel"], theirs[name])
    assert found["trainable/dense_1/kernel"].dtype == np.float32
    # And of the rest the hash of what every worker builds, which a trainer takes
    frozen = seeded(groups)["non_trainable/frozen.sha256"]
    np.testing.assert_array_equal(found["non_trainable/frozen.sha256"], frozen)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "dense/kernel: frozen, which every worker builds from the task: kept" in said
    assert "dense_2/bias: it stays with the client, who begins with the task's: kept" in said


def test_what_cannot_begin_a_run_is_one_line_before_there_is_a_folder(
    start: Start, folder: Path
) -> None:
    # Given a model of which nothing fits, no model, and arrays of another
    import keras

    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(folder / "other.keras")
    (folder / "text.keras").write_text("no model")
    np.savez(folder / "other.npz", **{"trainable/0": np.zeros((2, 2), np.float32)})
    run = ("run", folder / "flowers.toml", "--clock", "virtual")
    lead = ("aggregator", folder / "flowers.toml", "--broker", "amqp://localhost:1/")
    for command, file, says in (
        (run, "other.keras", "fits the model of flowers.py:Flowers: dense/kernel: (2, 2) in"),
        (lead, "other.keras", "fits the model of flowers.py:Flowers: dense/kernel: (2, 2) in"),
        (lead, "text.keras", "cannot read a Keras model from"),
        (run, "other.npz", "trainable/0 is float32[2, 2] in the file, and float32[4, 6] in the"),
        (lead, "none.keras", "there is no file"),
    ):
        # When a run shall begin with it
        process = start(*command, "--out", folder / "out", "--initial", folder / file)
        # Then it is refused
        assert process.wait() == 2, process.output
        assert says in process.output
        assert "Traceback" not in process.output
        assert not (folder / "out").exists()


def test_a_simulation_that_starts_over_does_not_forget_what_it_began_with(folder: Path) -> None:
    # Given a run under the virtual clock that began with weights from a file, and was stopped
    out = folder / "out"
    port = EmbeddedBroker().aggregator()
    port.lead(1.0)
    weights = {"trainable/0": np.ones(3, np.float32)}
    service = AggregatorService(
        *(experiment(), port, out), run_id="r", initial=weights, clock_name="virtual"
    )
    service.begin()
    service.close()
    # When it starts over without them, then that is refused, and nothing is lost
    with pytest.raises(UserError, match="began with --initial FILE: give it again"):
        forget_unfinished(out, experiment(), initial=False)
    assert (out / "ledger.sqlite").exists()
    # And with them it starts over
    forget_unfinished(out, experiment(), initial=True)
    assert not (out / "ledger.sqlite").exists()


def test_files_without_a_model_in_them_are_refused(folder: Path) -> None:
    (folder / "some.weights.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"save the whole model: model\.save"):
        initial_weights(folder / "some.weights.h5", experiment())
    (folder / "some.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="cannot read weights from"):
        initial_weights(folder / "some.npz", experiment())
    np.savez(folder / "others.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match="no weights of a model: names trainable/…"):
        initial_weights(folder / "others.npz", experiment())


def test_an_aggregator_without_tensorflow_says_what_it_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "theirs.keras").write_bytes(b"")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else find(name)
    )
    with pytest.raises(UserError, match="needs tensorflow, which is not installed: pip install"):
        initial_weights(folder / "theirs.keras", experiment())
