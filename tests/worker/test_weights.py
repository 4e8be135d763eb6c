"""Which weights travel ([weights]): adapters, personal layers, frozen ones; all named by path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

pytest.importorskip("tensorflow")

import keras
from keras import layers

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.commands.app import app
from fluffle.export import state_of
from fluffle.schemas import Experiment, Plan, Tensors, UserError
from fluffle.schemas.tensors import FROZEN, model_groups
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.tasks.registry import TASKS, load_task
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.per_plan import make_trainer
from fluffle.worker.training.saving import keras_model
from fluffle.worker.training.trial import check

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(0)
Y = RNG.integers(4, size=240)
X = (np.repeat(np.eye(4), 16, axis=1)[Y] + RNG.normal(0, 0.8, (240, 64))).astype(np.float32)


class Blobs(Task):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((64,)),
                layers.Dense(512, activation="relu"),
                layers.BatchNormalization(),
                layers.Dense(512, activation="relu"),
                layers.Dense(4, activation="softmax", name="head"),
            ]
        )

    def dataset(self) -> Examples:
        return Examples(X, Y)

    test = dataset


class Adapted(Blobs):
    def model(self) -> keras.Model:
        model = super().model()
        for layer in model.layers:
            if isinstance(layer, layers.Dense) and layer.name != "head":
                layer.enable_lora(1)
        return model


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "blobs", Blobs)
    monkeypatch.setitem(TASKS, "adapted", Adapted)


def tables(task: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "experiment": {"versions": 6},
        "task": {"name": task, "clients": 4},
        "partition": {"kind": "shards", "shards_per_client": 1},
        "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 20},
        "participation": {"concurrency": 4},
        "aggregation": {"strategy": "fedbuff", "quorum": 2},
        "evaluation": {"every_updates": 4},
        "weights": weights,
        **more,
    }


def plan_of(task: str, weights: dict[str, Any]) -> Plan:
    return Plan.of(Experiment.model_validate(tables(task, weights)), "delta")


def run(document: dict[str, Any], folder: Path, slots: int = 1) -> tuple[Tensors, list[Any]]:
    """The last version's tensors, and the hashes of all."""
    states = ClientStates(folder / "clients", 0)
    experiment = Experiment.model_validate(document)
    virtual = VirtualRun(experiment, folder, run_id="run", slots=slots, states=states)
    assert virtual.run() == "finished"
    ledger = Ledger(folder)
    rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    state = ledger.load().state
    assert state is not None
    ledger.close()
    return model_groups({k.removeprefix("model/"): a for k, a in state.items()}), rows


def test_adapters_travel_at_a_hundredth_of_the_bytes_and_learn(tmp_path: Path) -> None:
    # Given LoRA of rank 1 beside two layers of 512, and the statistics frozen with the rest
    lora = {"send": ["*lora*"]}
    document = tables("adapted", lora, partition={"kind": "iid"})
    document["experiment"]["versions"] = 20
    tensors, _ = run(document, tmp_path / "a")
    del document["weights"]
    full = make_trainer(Plan.of(Experiment.model_validate(document), "delta"))
    # Then four small tensors travel under their layers' names, and a hash
    assert list(tensors) == [
        "trainable/dense/lora_kernel_a",
        "trainable/dense/lora_kernel_b",
        "trainable/dense_1/lora_kernel_a",
        "trainable/dense_1/lora_kernel_b",
        FROZEN,
    ]
    size = sum(array.nbytes for array in tensors.values())
    assert size <= 0.01 * sum(array.nbytes for array in full.initial().values())
    # And they learn, with a trainer that builds the rest by itself
    trainer = make_trainer(plan_of("adapted", lora))
    assert (
        trainer.evaluate(tensors)[0]["loss"] < 0.8 * trainer.evaluate(trainer.initial())[0]["loss"]
    )
    # And a worker whose frozen weights are others says so
    with pytest.raises(UserError, match="other values here"):
        trainer.train({**tensors, FROZEN: tensors[FROZEN] ^ 1}, "1", 1)


def test_compression_and_privacy_work_on_what_travels(tmp_path: Path) -> None:
    more = {
        "privacy": {"clip_norm": 1.0, "noise_multiplier": 0.1},
        "update": [{"kind": "quantise", "bits": 8}],
    }
    tensors, _ = run(tables("adapted", {"send": ["*lora*"]}, **more), tmp_path)
    trainer = make_trainer(plan_of("adapted", {"send": ["*lora*"]}))
    np.testing.assert_array_equal(tensors[FROZEN], trainer.initial()[FROZEN])


def test_personal_layers_stay_with_the_client(tmp_path: Path) -> None:
    # Given heads and statistics that are each client's own (FedPer, FedBN), whose labels differ
    personal = {"keep": ["head/*", "batch_normalization/*"]}
    document = tables("blobs", personal)
    document["evaluation"]["by_client"] = True
    tensors, hashes = run(document, tmp_path / "a")
    # Then nothing of them travels
    assert not [name for name in tensors if "head" in name or "normal" in name]
    assert FROZEN not in tensors
    # And slots change no byte
    assert run(document, tmp_path / "b", slots=2)[1] == hashes
    # And they go on where they were: a client's second turn is better at its own labels
    trainer = make_trainer(plan_of("blobs", personal))
    base = trainer.initial()
    first = trainer.train(base, "1", 1, None, {})
    again = trainer.train(base, "1", 2, None, first.state)
    anew = trainer.train(base, "1", 2, None, None)
    assert sorted(first.state)[0].startswith("personal/")
    assert "personal/trainable/head/kernel" in first.state
    assert again.metrics["accuracy"] > anew.metrics["accuracy"]
    # And how a client's own model does is told by the client, and is in the ledger
    ledger = Ledger(tmp_path / "a")
    ((told,),) = ledger.query(
        "SELECT metrics FROM updates WHERE turn > 0 ORDER BY turn DESC LIMIT 1"
    )
    ledger.close()
    assert "personal_accuracy" in told
    # And the summary has them over all clients
    reader = LedgerReader(tmp_path / "a")
    personal = summarise(reader)["personal"]
    reader.close()
    assert 2 <= personal["clients"] <= 4
    assert personal["accuracy_worst"] <= personal["accuracy_mean"] <= 1


def test_what_is_frozen_is_not_trained_and_keeps_its_statistics() -> None:
    # Given linear probing: all but the head
    trainer = make_trainer(plan_of("blobs", {"freeze": ["dense*", "batch*"]}))
    base = trainer.initial()
    assert list(base) == ["trainable/head/kernel", "trainable/head/bias", FROZEN]
    found = trainer.train(base, "2", 1)
    assert (found.tensors["trainable/head/bias"] != base["trainable/head/bias"]).any()
    # Then a training leaves no trace in what is frozen: the same answers after another's
    before = trainer.evaluate(base)
    trainer.train(found.tensors, "3", 2)
    assert trainer.evaluate(base) == before


def test_names_are_those_of_the_model_however_many_were_built() -> None:
    one, other = (make_trainer(plan_of("blobs", {"freeze": ["dense_1/*"]})) for _ in range(2))
    assert list(one.initial()) == list(other.initial())
    assert "trainable/batch_normalization/gamma" in one.initial()
    base = one.initial()
    with pytest.raises(ValueError, match="trainable/head/bias is missing"):
        one.train({k: v for k, v in base.items() if k != "trainable/head/bias"}, "1", 1)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"keep": ["heat/*"]}, r"weights.keep: 'heat/\*' is none of .*head/kernel"),
        ({"keep": ["head/*"], "freeze": ["*/kernel"]}, "head/kernel is to keep and to freeze"),
        ({"freeze": ["*"]}, "nothing that is trained would travel|no trainable weights"),
    ],
)
def test_patterns_that_do_not_fit_are_refused_before_a_run(weights: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        check(Experiment.model_validate(tables("blobs", weights)))


def test_what_does_not_go_with_personal_weights_is_refused() -> None:
    document = tables("blobs", {"keep": ["head/*"]})
    document["training"] |= {"optimizer": "sgd"}
    document["aggregation"] = {"strategy": "scaffold"}
    with pytest.raises(ValidationError, match="does not go with scaffold"):
        Experiment.model_validate(document)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_clients_own_model_can_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorFlow is in use in this process, and a command would set it up.
    monkeypatch.setattr("fluffle.worker.training.runtime._configured", True)
    # Given a run with personal heads, and what its clients keep beside it
    document = tables("blobs", {"keep": ["head/*"]})
    tensors, _ = run(document, tmp_path)
    # When the models of two clients are made of them
    models = []
    for client in ("0", "1"):
        result = export(tmp_path, "--client", client)
        assert result.exit_code == 0, result.output
        models.append(keras.models.load_model(result.output.strip()))
    # Then the heads are their own, and all else is the run's
    ledger = LedgerReader(tmp_path)
    for client, model in enumerate(models):
        kernel, bias = model.get_layer("head").get_weights()
        kept = state_of(ledger, str(client))
        np.testing.assert_array_equal(kernel, kept["personal/trainable/head/kernel"])
        np.testing.assert_array_equal(bias, kept["personal/trainable/head/bias"])
        first = model.layers[0].get_weights()[0]
        np.testing.assert_array_equal(first, tensors["trainable/dense/kernel"])
    ledger.close()
    # And where there is none, a line says so
    shutil.rmtree(tmp_path / "clients")
    for client, why in [("9", "clients are 0 to 3"), ("1", "its state is at the worker that")]:
        result = export(tmp_path, "--client", client)
        assert isinstance(result.exception, UserError)
        assert why in str(result.exception)


@pytest.mark.parametrize("kind", ["layers", "ditto"])
def test_a_client_measures_its_own_model_on_examples_like_its_own(kind: str) -> None:
    # Given personal layers, or Ditto's whole personal model
    document = tables("blobs", {"keep": ["head/*"]})
    if kind == "ditto":
        del document["weights"]
        document["training"] |= {"algorithm": "ditto"}
    document["evaluation"]["by_client"] = True
    plan = Plan.of(Experiment.model_validate(document), "delta")
    trainer = make_trainer(plan)
    # When a client has trained
    found = trainer.train(trainer.initial(), "1", 1, None, {})
    # Then it says what Keras finds of its model, label by label, each as frequent as at the client
    model = keras_model(plan, found.tensors, found.state)
    right = model.predict(X, verbose=0).argmax(axis=1) == Y
    own = Y[load_task(plan).client_indices("1")]
    expected = np.mean([right[label == Y].mean() for label in own])
    assert found.metrics["personal_accuracy"] == pytest.approx(expected, abs=1e-6)
    # And it is another model than the one that is shared
    shared = trainer.evaluate(found.tensors)[0]["loss"]
    assert abs(found.metrics["personal_loss"] - shared) > 1e-3


def test_an_error_about_a_weight_names_its_layer() -> None:
    document = tables("blobs", {})
    del document["weights"]
    trainer = make_trainer(Plan.of(Experiment.model_validate(document), "delta"))
    base = trainer.initial()
    base["trainable/6"] = base["trainable/6"][:, :2]
    with pytest.raises(ValueError, match=r"trainable/6 \(head/kernel\) is"):
        trainer.train(base, "1", 1)
