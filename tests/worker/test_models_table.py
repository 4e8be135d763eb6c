"""The support table of docs/models.md, cell by cell: each kind of model through all of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf

from fluffle.aggregator.coordinator.admission import finite
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import ClientUpdate, Experiment, Plan, Run, Tensors, UserError, transforms
from fluffle.schemas.codec import decode, encode
from fluffle.schemas.tensors import spec, tensors_sha256
from fluffle.worker.services.answers import delta
from fluffle.worker.tasks.registry import TASKS, load_task
from fluffle.worker.training.saving import keras_model, save
from fluffle.worker.training.trainer import Trained, Trainer
from fluffle.worker.training.trial import try_out
from tests.worker.models import APPLICATIONS, BATCH, EXAMPLES, IDS, MODELS, task_of

pytestmark = [pytest.mark.tensorflow]

RUN = Run(run_id="r", run_started=0, epoch=1)
UPDATE = [{"kind": "top_k", "share": 0.5}, {"kind": "quantise", "bits": 8}]
ALL = MODELS | APPLICATIONS
each = pytest.mark.parametrize(
    "name",
    [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in APPLICATIONS)],
)


@dataclass(frozen=True)
class Made:
    """A model's plan, its trainer, and what a training gave."""

    plan: Plan
    experiment: Experiment
    trainer: Trainer
    initial: Tensors
    trained: Trained


@cache
def made(name: str) -> Made:
    TASKS[name] = task_of(ALL[name])
    experiment = Experiment.model_validate(
        {
            "task": {"name": name, "clients": 2},
            "training": {"epochs": 2, "batch_size": BATCH, "learning_rate": 0.01},
            "aggregation": {"strategy": "fedbuff", "quorum": 2},
        }
    )
    plan = Plan.of(experiment, "delta")
    try_out(load_task(plan))
    trainer = Trainer(plan)
    initial = trainer.initial()
    return Made(plan, experiment, trainer, initial, trainer.train(initial, "0", 1))


def update(this: Made, client: int, tensors: Tensors) -> ClientUpdate:
    return ClientUpdate(
        run=RUN,
        update_id=f"r:{client + 1}:{client}",
        client=str(client),
        turn=client + 1,
        base_version=0,
        worker="w",
        sends="delta",
        examples=EXAMPLES // 2,
        tensors=tensors,
    )


@each
def test_it_trains(name: str) -> None:
    this = made(name)
    assert spec(this.trained.tensors) == spec(this.initial)
    assert finite(this.trained.tensors)
    moved = [
        key
        for key, array in this.initial.items()
        if key.startswith("trainable/") and (array != this.trained.tensors[key]).any()
    ]
    assert moved
    assert np.isfinite(this.trained.metrics["loss"])


@each
def test_it_aggregates(name: str) -> None:
    # Given two updates as they travel
    this = made(name)
    strategy = make_strategy(this.experiment)
    state = strategy.init(this.initial)
    for client in range(2):
        sent = update(this, client, delta(this.trained.tensors, this.initial))
        arrived = decode(encode(sent))
        assert isinstance(arrived, ClientUpdate)
        state = strategy.accept(state, arrived, 0)
    # When a version is made of them
    following = model_of(strategy.step(state))
    # Then it is what both sent, and every worker can measure it
    assert spec(following) == spec(this.initial)
    for key, array in this.trained.tensors.items():
        whole = array.dtype.kind in "iub"
        close = {} if whole else {"rtol": 1e-2 if array.dtype.itemsize < 4 else 1e-5, "atol": 1e-6}
        given, found = (
            np.asarray(a, None if whole else np.float64) for a in (array, following[key])
        )
        (np.testing.assert_array_equal if whole else np.testing.assert_allclose)(
            found, given, **close
        )
    metrics, examples = this.trainer.evaluate(following)
    assert examples == EXAMPLES
    assert np.isfinite(metrics["loss"])


@each
def test_it_exports(name: str, tmp_path: Path) -> None:
    # Given a version, and what a worker measures of it
    this = made(name)
    measured, _ = this.trainer.evaluate(this.trained.tensors)
    # When it is exported to Keras
    model = keras_model(this.plan, this.trained.tensors)
    save(model, this.plan, tmp_path / "model.keras")
    if ALL[name].loads:
        model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    # Then the model is the same one: what it predicts has the loss that was measured
    task = load_task(this.plan)
    examples = task.test()
    x, y = (keras.tree.map_structure(keras.ops.convert_to_tensor, one) for one in examples)
    losses = []
    this.trainer._model.reset_metrics()
    for start in range(0, EXAMPLES, BATCH):
        part: Any = keras.tree.map_structure(lambda a, at=start: a[at : at + BATCH], (x, y))
        predicted = model(part[0], training=False)
        losses.append(float(this.trainer._model.compute_loss(*part, predicted, training=False)))
    if "stateful" not in name:  # whose batches follow each other
        assert np.mean(losses) == pytest.approx(measured["loss"], rel=1e-2, abs=1e-3)


@each
def test_it_resumes(name: str) -> None:
    # When a turn is trained again, from bytes, by a worker that has trained others meanwhile
    this = made(name)
    sent = decode(encode(update(this, 0, this.initial)))
    assert isinstance(sent, ClientUpdate)
    this.trainer.train(this.trained.tensors, "1", 2)
    this.trainer.evaluate(this.trained.tensors)
    again = this.trainer.train(sent.tensors, "0", 1)
    # Then it gives the same bytes
    assert tensors_sha256(again.tensors) == tensors_sha256(this.trained.tensors)
    assert again.metrics == this.trained.metrics


@each
def test_it_compresses(name: str) -> None:
    # Given an update that is made smaller on its way
    this = made(name)
    steps = Experiment.model_validate({"update": UPDATE}).update or ()
    sent = delta(this.trained.tensors, this.initial)
    draws = transforms.Draws(np.random.default_rng(0), np.random.default_rng(1))
    small, _ = transforms.apply(steps, sent, draws, {})
    arrived = decode(encode(update(this, 0, small)))
    assert isinstance(arrived, ClientUpdate)
    # Then what arrives is of the model's spec, half of it at least as sent, and the rest as it was
    restored = transforms.restore(steps, arrived.tensors, spec(this.initial))
    assert spec(restored) == spec(sent)
    assert finite(restored)
    for key, array in sent.items():
        if key.startswith("non_trainable/"):
            assert restored[key].tobytes() == array.tobytes()


def test_the_page_has_a_row_for_every_kind() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines() if " | yes | " in line]
    assert [row[0].removeprefix("| ") for row in rows] == list(ALL)


def test_integers_and_truth_values_are_as_they_were() -> None:
    this = made("int, bool and empty weights")
    values = {k: a for k, a in this.trained.tensors.items() if a.dtype.kind in "ib"}
    assert sorted(a.dtype.name for a in values.values()) == ["bool", "int32", "int64"]
    assert all(key.startswith("non_trainable/") for key in values)
    assert any(np.array_equal(array, IDS) for array in values.values())


def test_what_a_normalization_has_learnt_is_the_versions_not_the_workers() -> None:
    # Given a version whose statistics are others than those that this worker has adapted
    this = made("Normalization, adapted")
    other = dict(this.initial)
    (mean,) = (
        k
        for k, a in other.items()
        if k.startswith("non_trainable/")
        and a.ndim == 1
        and np.allclose(a, this.initial[k])
        and (a > 4).all()
        and (a < 6).all()
    )
    other[mean] = other[mean] + 3
    # Then it computes with the version's, and so does an export
    assert this.trainer.evaluate(other)[0]["loss"] != this.trainer.evaluate(this.initial)[0]["loss"]
    exported = keras_model(this.plan, other)
    assert np.allclose(np.asarray(exported.layers[0].mean).reshape(-1), other[mean])


def test_other_entries_of_a_look_up_table_are_named_and_give_no_other_answers() -> None:
    # Given a version of a worker whose vocabulary was another
    this = made("StringLookup")
    *_, tables = (key for key in this.initial if key.startswith("non_trainable/"))
    other = this.initial | {tables: np.zeros_like(this.initial[tables])}
    # Then nobody trains, measures or exports it
    for use in (this.trainer.evaluate, lambda weights: this.trainer.train(weights, "0", 1)):
        with pytest.raises(UserError, match=r"a look-up layer .* has other entries here"):
            use(other)
    with pytest.raises(ValueError, match="look-up layers of StringLookup have other entries"):
        keras_model(this.plan, other)


@pytest.mark.parametrize("name", ["dict of inputs", "list of inputs", "TextVectorization"])
def test_a_saved_model_takes_inputs_as_the_task_has_them(name: str, tmp_path: Path) -> None:
    this = made(name)
    model = keras_model(this.plan, this.trained.tensors)
    save(model, this.plan, tmp_path / "model.savedmodel")
    loaded = tf.saved_model.load(str(tmp_path / "model.savedmodel"))
    x = keras.tree.map_structure(lambda a: tf.constant(a[:3]), load_task(this.plan).test().x)
    np.testing.assert_allclose(loaded.serve(x), model(x), atol=1e-6)
