"""Files that a command is told to write: nothing of another kind is written over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.commands.app import app
from fluffle.schemas import UserError
from fluffle.worker.services.journal import Journal
from tests.fluffle.runs import write_run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


@pytest.mark.parametrize(
    "words",
    [
        ("export", "run", "--format", "npz", "--out", "run/ledger.sqlite"),
        ("export", "run", "--format", "csv", "--out", "experiment.toml"),
        ("export", "run", "--format", "jsonl", "--out", "run/weights"),
        ("report", "run", "--out", "."),
        ("report", "run", "--out", "mine"),
        ("broker", "definitions", "experiment.toml", "passwords"),
    ],
)
def test_what_is_of_another_kind_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    # Given a run, and files of a user's own
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("experiment.toml", "report.html", "accuracy.svg", "mine/report.html"):
        (tmp_path / name).write_text("<title>My report</title>")
    before = contents(tmp_path)
    # When a command is told to write there
    done = CliRunner().invoke(app, words)
    # Then it says so in one line, and nothing has changed
    assert isinstance(done.exception, UserError), done.output
    assert "is there already" in str(done.exception)
    assert "\n" not in str(done.exception)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [("export", "run", "--format", "csv", "--out", "a.csv"),
                                   ("report", "run", "--out", "report")])  # fmt: skip
def test_what_was_written_before_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.exception


def test_a_password_is_one_line(tmp_path: Path) -> None:
    # Given a folder in which a user's name is that of another file
    (tmp_path / "worker").write_text("import fluffle\nprint('mine')\n")
    # When, then
    done = CliRunner().invoke(app, ["broker", "users", str(tmp_path)])
    assert "worker holds no password" in str(done.exception)


@pytest.mark.parametrize("write", [lambda p: write_run(p.parent), lambda p: p.write_text("# x\n")])
def test_a_journal_is_appended_to_no_other_file(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "ledger.sqlite"
    write(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="is there already, and no journal"):
        Journal(path)
    assert path.read_bytes() == before
