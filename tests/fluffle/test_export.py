"""What comes out of a run: a Keras model, arrays, tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.commands.app import app
from fluffle.export import export
from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.worker.tasks.registry import TASKS
from tests.fluffle.runs import write_run

DIGITS = """
[experiment]
name = "digits"
versions = 3
[task]
name = "digits-lr"
clients = 4
[evaluation]
every_updates = 3
by_client = true
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three versions, as the command leaves it."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "digits.toml").write_text(DIGITS)
    result = run("run", folder / "digits.toml", "--slots", 1, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def recorded(folder: Path, version: int) -> dict[str, float]:
    """The metrics that the ledger has of this version."""
    ledger = Ledger(folder)
    found = {v: json.loads(metrics) for v, metrics, *_ in ledger.evaluations()}
    ledger.close()
    return dict(found[version])


@pytest.mark.tensorflow
def test_plain_keras_loads_what_a_run_leaves_and_measures_what_the_ledger_has(
    finished: Path,
) -> None:
    import keras

    # Given the held-out examples, as the task prepares them
    task = TASKS["digits-lr"].of(TaskTable(name="digits-lr"), PartitionTable(), 42)
    x, y = task.test()
    x = np.asarray(task.preprocess(x))
    ledger = Ledger(finished)
    best = ledger.best()
    ledger.close()
    assert best is not None
    for name, version in (("model.keras", 3), ("best.keras", best[0])):
        # When plain Keras loads the file
        model = keras.models.load_model(finished / name)
        # Then it measures the same, with the task's loss and metrics
        measured = model.evaluate(x, y, verbose=0, return_dict=True)
        there = recorded(finished, version)
        assert measured == pytest.approx({name: there[name] for name in measured}, abs=1e-5)
    # And it can be trained on
    model.fit(x[:32], y[:32], verbose=0)


@pytest.mark.tensorflow
def test_the_confusion_matrix_beside_it_adds_up_to_the_accuracy(finished: Path) -> None:
    found = json.loads((finished / "confusion.json").read_text())
    counts = np.array(found["counts"])
    assert (found["version"], counts.shape, counts.sum()) == (3, (10, 10), 360)
    assert np.trace(counts) / 360 == pytest.approx(recorded(finished, 3)["accuracy"])
    labels = TASKS["digits-lr"].of(TaskTable(name="digits-lr"), PartitionTable(), 42).test().y
    assert counts.sum(axis=1).tolist() == np.bincount(labels).tolist()


@pytest.mark.tensorflow
def test_clients_differ_in_the_summary_and_in_the_table(finished: Path) -> None:
    ledger = Ledger(finished)
    by_client = summarise(ledger)["by_client"]
    ledger.close()
    last = json.loads(export(finished, "jsonl", "last", None).read_text().splitlines()[-1])
    assert by_client["accuracy_worst"] == last["client_accuracy_worst"] <= last["accuracy"]
    assert by_client["loss_std"] == last["client_loss_std"] > 0


@pytest.mark.tensorflow
def test_a_client_without_a_model_of_its_own_is_said(finished: Path) -> None:
    result = run("export", finished, "--client", 1)
    assert isinstance(result.exception, UserError)
    assert "keep no model of their own" in str(result.exception)


@pytest.mark.tensorflow
def test_a_saved_model_takes_raw_inputs(finished: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    path = export(finished, "saved_model", "last", tmp_path / "served")
    task = TASKS["digits-lr"].of(TaskTable(name="digits-lr"), PartitionTable(), 42)
    x, y = task.test()
    served = tf.saved_model.load(str(path))
    predicted = served.serve(tf.constant(x)).numpy()
    assert np.mean(predicted.argmax(axis=1) == y) == pytest.approx(
        recorded(finished, 3)["accuracy"]
    )


def test_weights_as_arrays(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = export(folder, "npz", "best", None)
    assert path == folder / "best.npz"
    with np.load(path) as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == {
            "trainable/0": [2.0, 2.0, 2.0, 2.0]
        }
    with np.load(export(folder, "npz", "1", tmp_path / "one.npz")) as arrays:
        assert arrays["trainable/0"].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_metrics_as_a_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    # When they are written in both ways
    with export(folder, "csv", "last", None).open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    lines = export(folder, "jsonl", "last", None).read_text().splitlines()
    # Then there is a row for each version, the same in both
    rows = [json.loads(line) for line in lines]
    assert [row["version"] for row in rows] == [0, 1, 2]
    assert [row["updates_total"] for row in rows] == [0, 2, 5]
    assert [row["accuracy"] for row in rows] == [0.125, 0.5, 0.75]
    assert rows[2]["staleness_mean"] == pytest.approx(2 / 3)
    assert (rows[1]["bytes_up"], rows[1]["bytes_down"]) == (200, 2000)
    for row, cells in zip(rows, table, strict=True):
        assert {name: "" if v is None else str(v) for name, v in row.items()} == {
            name: cells[name] for name in row
        }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version", "9"], "there is no version 9 in .*: the last is 2"),
        (["--version", "newest"], "it is last, best or a number"),
        (["--version", "0"], "the weights of version 0 are gone"),
        (["--format", "onnx"], "use one of keras, saved_model, npz, csv, jsonl"),
        (["--format", "keras", "--out", "model.h5"], "a name that ends in .keras"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path: Path, arguments: list[str], says: str) -> None:
    folder = write_run(tmp_path / "run")
    ledger = Ledger(folder)
    ((file,),) = ledger.query("SELECT file FROM versions WHERE version = 0")
    ledger.close()
    (folder / "weights" / file).unlink()
    result = run("export", folder, *arguments)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=says):
        raise result.exception


def test_a_run_without_evaluations_has_no_best_version(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics={})
    with pytest.raises(UserError, match="no evaluated version"):
        export(folder, "npz", "best", None)


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        export(tmp_path, "csv", "last", None)
