"""``fluffle watch``: what its page is sent, and whom it answers."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.commands.app import app
from fluffle.live.reading import BARS, POINTS, REASONS, ROWS, RunReading
from fluffle.live.runs import Runs
from fluffle.live.server import LiveServer
from fluffle.schemas import Evaluation, Experiment, UserError
from tests.aggregator.scripted import Federation
from tests.fluffle.runs import RUN, write_run

MARKUP = "<img src=x onerror=alert(1)>"


def write_crowd(folder: Path, clients: int = 1000, versions: int = 500, name: str = "w") -> Path:
    """A run with as many workers as clients, evaluated often, with every kind of rejection."""
    ledger = Ledger(folder, durable=False)
    experiment = {"task": {"clients": clients}, "experiment": {"versions": versions + 1}}
    ledger.open_run(Experiment.model_validate(experiment), "run", 1, "real")
    ledger.lead()
    for version in range(versions):
        folds = [
            Fold(
                **{"update_id": f"run:{turn}", "client": str(turn % clients), "turn": turn + 1},
                **{"base_version": 0, "staleness": version, "examples": 10, "slot_s": 1.0},
                worker=f"{name * 200}{turn % clients}",
            )
            for turn in range(2 * version, 2 * version + 2)
        ]
        made = MakeVersion(version, {}, "quorum", folds if version else [], 9)
        ledger.make_version(made, {fold.update_id: 1 for fold in folds}, float(version), keep=1)
        measured = {f"metric {i}": float(i) for i in range(20)} | {"loss": float("nan")}
        measured["accuracy"] = version / versions
        told = Evaluation.model_construct(
            run=RUN, version=version, worker="e", metrics=measured, examples=9, seconds=0.0
        )
        ledger.record_evaluation(told, float(version))
    for number in range(50):
        ledger.record_rejection(f"sha{number}", "", f"reason {number} " + "x" * 1000)
    ledger.close()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """Serves the folder ``runs``, which is empty at first."""
    (tmp_path / "runs").mkdir()
    one = LiveServer(Runs([tmp_path / "runs"]), 0)
    thread = threading.Thread(target=one.serve, daemon=True)
    thread.start()
    yield one
    one.end()
    thread.join(30)
    assert not thread.is_alive()


def ask(server: LiveServer, path: str, **more: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request(more.pop("method", "GET"), path, headers=more)
    return connection.getresponse()


def first_event(server: LiveServer, path: str = "/events") -> dict[str, object]:
    with closing(ask(server, path)) as answer:
        return dict(json.loads(answer.readline().removeprefix(b"data: ")))


def test_a_run_is_told_as_its_ledger_has_it(tmp_path: Path) -> None:
    run = RunReading(write_run(tmp_path / "run"), "run").look()
    assert run is not None
    assert (run["status"], run["version"], run["of_versions"]) == ("finished", 2, 100)
    assert (run["counted"], run["dropouts"], run["failures"]) == (5, 1, 1)
    assert run["rejected"] == [["late", 2], ["too stale", 1]]
    assert run["staleness"] == [3, 2]
    assert run["curves"][0] == {
        "name": "accuracy",
        "points": [[0, 1.0, 0.125], [1, 10.0, 0.5], [2, 20.0, 0.75]],
    }
    assert [(one["client"], one["version"]) for one in run["recent"]][:2] == [("2", 2), ("0", 2)]
    assert {one["name"]: one["updates"] for one in run["workers"]} == {"w1": 4, "w2": 1}
    assert run["failed"][0][:3] == ["4", "w1", "no data"]


def test_what_is_added_later_is_what_one_look_would_have_seen(tmp_path: Path) -> None:
    # Given a run that is looked at after each of its versions
    began = Federation(tmp_path / "run", aggregation={"quorum": 2}, experiment={"versions": 50})
    reading = RunReading(tmp_path / "run", "run")
    seen = []
    for _ in range(3):
        began.answer(2)
        seen.append(reading.look())
    # Then it has moved, and the last look is that of somebody who has just come
    versions = [run["version"] for run in seen if run is not None]
    assert versions == sorted(set(versions))
    assert len(versions) == 3
    assert seen[-1] == RunReading(tmp_path / "run", "run").look()


def test_runs_are_found_at_both_depths(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first")
    write_run(tmp_path / "runs" / "experiments" / "mnist.toml")
    state = Runs([tmp_path / "runs"]).state(None)
    assert {run["label"] for run in state["runs"]} == {"first", "mnist.toml"}


def test_another_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    reading = RunReading(write_run(tmp_path / "run"), "run")
    assert reading.look() is not None
    write_run(tmp_path / "other", losses=False, metrics={})
    (tmp_path / "run").rename(tmp_path / "away")
    assert reading.look() is not None  # what was there last
    Ledger(tmp_path / "run", durable=False).close()
    ledger = Ledger(tmp_path / "run", durable=False)
    ledger.open_run(Experiment.model_validate({"task": {"clients": 5}}), "second", 2, "real")
    ledger.lead()
    ledger.close()
    run = reading.look()
    assert run is not None
    assert (run["run_id"], run["counted"], run["workers"], run["curves"]) == ("second", 0, [], [])


def test_a_crowd_makes_no_larger_events(tmp_path: Path) -> None:
    run = RunReading(write_crowd(tmp_path / "run"), "run").look()
    assert run is not None
    # allow_nan: what is no number is null, or a browser could not read it
    assert len(json.dumps(run, allow_nan=False)) < 64_000
    assert [len(curve["points"]) for curve in run["curves"]] == [POINTS] * 4
    assert run["curves"][0]["points"][-1][0] == 499
    assert run["curves"][1]["name"] == "loss"
    assert run["curves"][1]["points"][0][2] is None
    assert len(run["staleness"]) == BARS
    assert sum(run["staleness"]) == run["counted"] == 998
    assert (len(run["workers"]), len(run["recent"]), len(run["rejected"])) == (ROWS, ROWS, REASONS)
    assert (run["workers_more"], run["rejected_more"]) == (998 - ROWS, 50 - REASONS)


def test_runs_are_found_as_they_come_and_the_newest_is_shown(
    server: LiveServer, tmp_path: Path
) -> None:
    assert first_event(server)["run"] is None
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "runs" / "two")
    state = Runs([tmp_path / "runs"]).state("one")
    assert sorted(run["label"] for run in state["runs"]) == ["one", "two"]
    assert state["run"]["label"] == "one"
    # Nobody can ask for another folder by a name
    assert Runs([tmp_path / "runs" / "one"]).state("../two")["run"]["label"] == "one"


def test_only_who_asks_for_this_machine_is_answered_and_nothing_can_be_sent(
    server: LiveServer,
) -> None:
    port = server.url.rpartition(":")[2]
    for path in ("/", "/page.css", "/page.js"):
        answer = ask(server, path)
        assert answer.status == 200
        assert answer.read()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert ask(server, "/", Host=f"localhost:{port}").status == 200
    # A name of somebody's that points here
    for path in ("/", "/events"):
        assert ask(server, path, Host=f"rebound.example:{port}").status == 400
    assert ask(server, "/", method="POST").status == 405
    assert ask(server, "/../pyproject.toml").status == 404


def test_what_a_user_can_get_wrong_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "none")])
    assert isinstance(result.exception, UserError)
    assert "there is no folder" in str(result.exception)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            LiveServer(Runs([tmp_path]), taken.getsockname()[1])
