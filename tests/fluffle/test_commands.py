"""The front door: options before the command, folders that are somebody else's, help."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fluffle.commands.app import app
from fluffle.schemas import UserError

EXPERIMENT = "[experiment]\nversions = 1\n"


def says(*words: object) -> str:
    """The line with which a command refuses."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output == f"fluffle {version('fluffle')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log-level", "loud"], "--log-level loud: it is debug, info, warning, error"),
        (["--log-format", "xml"], "--log-format xml: it is text or json"),
    ],
)
def test_a_wrong_way_to_log_is_refused(words: list[str], said: str) -> None:
    assert says(*words, "data", "list") == said


@pytest.mark.parametrize("command", ["run", "aggregator"])
def test_a_folder_that_is_somebody_elses_is_refused_and_left_alone(
    tmp_path: Path, command: str
) -> None:
    # Given a user's folder, with a model of theirs in it
    (tmp_path / "model.keras").write_bytes(b"mine")
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    more = ["--broker", "amqp://127.0.0.1:9/"] if command == "aggregator" else []
    # When a run shall go there
    line = says(command, tmp_path / "e.toml", "--out", tmp_path, *more)
    # Then it is refused, and nothing was written
    assert "holds no run, and is not empty (e.toml)" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.toml", "model.keras"]
    assert (tmp_path / "model.keras").read_bytes() == b"mine"


def test_help_shows_every_word_that_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given help that names tables of the experiment, in brackets
    monkeypatch.setenv("COLUMNS", "200")
    report = CliRunner().invoke(app, ["report", "--help"]).output
    # Then they are there
    assert "the experiment's [cost]." in report
    assert "Accuracy in (0, 1];" in report
    # And no help of any command has a backslash or a tag
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert not re.search(r"\\|\[/", CliRunner().invoke(app, [name, "--help"]).output), name


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    # Given a command whose import takes long
    (tmp_path / "numpy.py").write_text(
        "import os, time\nprint('importing', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", "from fluffle.cli import main; main()", "run", "e.toml"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    # When a person has second thoughts
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    # Then it is gone, with the code that shells use
    assert (process.returncode, error) == (130, "")


def test_a_task_that_nobody_knows_is_refused_before_there_is_a_run_folder(tmp_path: Path) -> None:
    # Given an experiment with a slip in it
    file, out = tmp_path / "experiment.toml", tmp_path / "out"
    file.write_text('[task]\nname = "mnist-mpl"\nclients = 2\n')
    # When somebody leads it, on a broker that is not even there
    words = ["aggregator", str(file), "--broker", "amqp://127.0.0.1:1", "--out", str(out)]
    with pytest.raises(UserError, match="there is no task 'mnist-mpl'"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    # Then nothing was made
    assert not out.exists()
