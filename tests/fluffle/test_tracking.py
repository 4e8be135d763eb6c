"""Curves in TensorBoard and MLflow, read back by their own readers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fluffle.broker import Envelope
from fluffle.commands.app import app
from fluffle.schemas import Evaluation, UserError
from fluffle.tracking import Tracker, tracked
from tests.aggregator.scripted import Federation

Curves = dict[str, list[tuple[int, float]]]


def tensorboard(folder: Path) -> Tracker:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from fluffle.tracking.tensorboard import TensorBoard

    return TensorBoard(folder)


def read_tensorboard(folder: Path, run_id: str) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / run_id), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def mlflow(folder: Path) -> Tracker:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from fluffle.tracking.mlflow import MLflow

    return MLflow(store(folder))


def store(folder: Path) -> str:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return folder.resolve().as_uri()


def read_mlflow(folder: Path, run_id: str) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(store(folder))
    (experiment,) = [e for e in client.search_experiments() if e.name == "tracked"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["fluffle.run_id"] == run_id
    assert run.data.params["task.clients"] == "8"
    assert run.info.status == "FINISHED"
    return {
        tag: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]
        for tag in run.data.metrics
    }


class Tracked:
    """A federation in one thread, which says when it has been evaluated."""

    def __init__(self, folder: Path) -> None:
        self.federation = Federation(
            folder,
            experiment={"name": "tracked", "versions": 6},
            evaluation={"every_updates": 3},
            aggregation={"quorum": 3},
        )

    def go_on(self, answers: int) -> None:
        for _ in range(answers):
            self.federation.answer(3)
            self.evaluate()

    def evaluate(self) -> None:
        coordinator = self.federation.service.coordinator
        assert coordinator is not None
        measured = {"accuracy": coordinator.version / 8, "client_loss_std": 1.5}
        evaluation = Evaluation(
            run=coordinator.run,
            version=coordinator.version,
            worker="e",
            metrics=measured,
            examples=9,
        )
        self.federation.worker.submit(Envelope.of(evaluation))
        self.federation.settle()


@pytest.mark.parametrize(("make", "read"), [(tensorboard, read_tensorboard), (mlflow, read_mlflow)])
def test_a_run_that_is_resumed_and_tracked_again_has_every_point_once(
    tmp_path: Path,
    said: list[str],
    make: Callable[[Path], Tracker],
    read: Callable[[Path, str], Curves],
) -> None:
    # Given a run whose aggregator dies after some versions
    curves = tmp_path / "curves"
    run = Tracked(tmp_path / "run")
    with tracked(run.federation.service, [make(curves)]):
        run.go_on(3)
    run.federation.die()
    # When it is resumed, goes on to its end, and is tracked once more after that
    run.federation.start()
    with tracked(run.federation.service, [make(curves)]):
        run.go_on(6)
        assert run.federation.service.outcome == "finished"
    with tracked(run.federation.service, [make(curves)]):
        pass
    assert not [line for line in said if "trying again" in line]
    # Then the tracker's own reader finds each version once, with the ledger's values
    found = read(curves, "run")
    assert found["evaluation/accuracy"] == [(v, v / 8) for v in range(7)]
    assert found["run/updates_total"] == [(v, 3.0 * v) for v in range(7)]
    assert found["by_client/loss_std"] == [(v, 1.5) for v in range(7)]
    assert [step for step, _ in found["run/staleness_mean"]] == list(range(1, 7))


def test_a_torn_event_file_is_gone_on_with(tmp_path: Path, said: list[str]) -> None:
    # Given a process that was killed while it wrote a point
    run = Tracked(tmp_path / "run")
    with tracked(run.federation.service, [tensorboard(tmp_path)]):
        run.go_on(3)
    (events,) = (tmp_path / "run").glob("events.*")
    whole = read_tensorboard(tmp_path, "run")
    events.write_bytes(events.read_bytes()[:-7])
    # When the run is tracked again
    with tracked(run.federation.service, [tensorboard(tmp_path)]):
        pass
    # Then the point is there, once, and nobody had trouble
    assert not [line for line in said if "trying again" in line]
    assert read_tensorboard(tmp_path, "run") == whole


class Unreachable:
    """A server that is down."""

    def open(self, about: Any) -> dict[str, int]:
        raise ConnectionError("http://me:secret@tracking:5000 is down")

    def write(self, points: Any) -> None:
        raise AssertionError

    def close(self, status: str) -> None:
        raise AssertionError


def test_a_server_that_is_down_ends_no_run_and_its_password_is_not_said(
    tmp_path: Path, said: list[str]
) -> None:
    run = Tracked(tmp_path / "run")
    with tracked(run.federation.service, [Unreachable()]):
        run.go_on(7)
    assert run.federation.service.outcome == "finished"
    assert [line for line in said if "trying again" in line] == [
        "Unreachable: http://tracking:5000 is down; trying again"
    ]


def test_an_extra_that_is_missing_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    monkeypatch.delitem(__import__("sys").modules, "fluffle.tracking.mlflow", raising=False)
    arguments = ["run", "experiments/mnist.toml", "--mlflow", "mlruns", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    with pytest.raises(UserError, match="mlflow is not installed: pip install"):
        raise result.exception or AssertionError
    assert not list(tmp_path.iterdir())
