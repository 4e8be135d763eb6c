"""A run folder says what the run was: its experiment as a file that runs, and what it ran with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.aggregator.ledger.record import read_environments
from fluffle.commands.app import app
from fluffle.experiment_file import load_experiment
from fluffle.running import takes_time
from fluffle.schemas import Experiment
from fluffle.settings import differences
from tests.fluffle.toy import write_toy


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["run", *map(str, words), "--clock", "virtual"])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUFFLE_TASK", os.environ.get("FLUFFLE_TASK", ""))  # put back at the end
    return write_toy(tmp_path / "mine")


def test_the_experiment_in_a_run_folder_runs_again_to_the_same_bytes(
    toy: Path, tmp_path: Path
) -> None:
    # Given a run with a setting of the command line, and tables from files
    (toy.parent / "phones.csv").write_text("seconds_per_example,latency_s\n0.1,1\n0.5,2\n")
    hardware = ("--set", "devices.hardware=phones.csv")
    first = run(toy, "--out", tmp_path / "a", "--set", "aggregation.quorum=2", *hardware, "--json")
    # Then its folder holds what it was, effective settings and versions of packages
    kept = load_experiment(tmp_path / "a" / "experiment.toml")
    assert (kept.quorum, kept.training.batch_size) == (2, 32)
    (environment,) = read_environments(tmp_path / "a")
    assert {"fluffle", "numpy"} <= environment["packages"].keys()
    # And run again from there, beside its task, it is the same run
    (tmp_path / "a" / "clouds.py").write_text((toy.parent / "clouds.py").read_text())
    again = run(tmp_path / "a" / "experiment.toml", "--out", tmp_path / "b", "--json")
    sha = [json.loads(text.splitlines()[-1])["weights_sha256"] for text in (first, again)]
    assert sha[0] == sha[1]


def test_show_prints_what_a_run_was(toy: Path, tmp_path: Path) -> None:
    run(toy, "--out", tmp_path / "a")
    done = CliRunner().invoke(app, ["show", str(tmp_path / "a")])
    for said in ("finished", "aggregation.quorum", "partition.alpha", "devices.delay", "numpy"):
        assert said in done.output
    assert "training.batch_size" not in done.output  # a default
    told = json.loads(CliRunner().invoke(app, ["show", str(tmp_path / "a"), "--json"]).output)
    assert told["settings"]["aggregation.quorum"] == 3
    assert told["summary"]["versions"] == 8
    assert told["clock"] == "virtual"


def test_a_clock_that_stands_still_is_said(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(toy, "--out", tmp_path / "a")
    assert "virtual times will be 0" not in capfd.readouterr().err
    run(toy, "--out", tmp_path / "b", "--set", "devices.delay=", "--set", "devices.delay_s=",
        "--set", "devices.delay_of=")  # fmt: skip
    assert "all its virtual times will be 0" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tables", "passes"),
    [
        ({}, False),
        ({"devices": {"stragglers": 0.5}}, False),
        ({"devices": {"delay": "constant", "delay_s": 0.0}}, False),
        ({"devices": {"preset": "phones"}}, True),
        ({"devices": {"upload_bytes_per_s": 1e6}}, True),
        ({"devices": {"dropout": 0.1}}, True),
        ({"participation": {"pause_s": [0.0, 1.0]}}, True),
    ],
)
def test_time_passes_where_something_takes_some(tables: dict[str, object], passes: bool) -> None:
    assert takes_time(Experiment.model_validate(tables)) is passes


def test_differences_are_said_by_the_full_name_of_a_key() -> None:
    one = {"experiment": {"seed": 1}}
    other = {"training": {"proximal_mu": 0.1}, "experiment": {"name": "b"}}
    found = differences([Experiment.model_validate(tables) for tables in (one, other)])
    assert found == {"experiment.seed": [1, 42], "training.proximal_mu": [None, 0.1]}
