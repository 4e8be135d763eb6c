"""Experiments by name, and what a shell offers for them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fluffle as fl
from fluffle.experiment_file import load_experiment
from fluffle.shipped import experiment_file, shipped
from tests.docs import ROOT
from tests.fluffle.test_commands import says


def test_every_experiment_of_the_folder_that_needs_no_file_of_its_own_has_a_name() -> None:
    found = shipped()
    there = {path.stem for path in (ROOT / "experiments").glob("*.toml")}
    assert set(found) == there - {"sites"}
    for path in found.values():
        load_experiment(path)


def test_a_name_is_a_file_s_where_one_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        experiment_file(Path("mnist")).read_text()
        == (ROOT / "experiments" / "mnist.toml").read_text()
    )
    Path("mnist").write_text("[experiment]\n")
    assert experiment_file(Path("mnist")) == Path("mnist")
    assert experiment_file(Path("mine/mnist")) == Path("mine/mnist")


@pytest.mark.parametrize("command", [("run",), ("sweep",), ("aggregator", "--out", "x")])
def test_a_name_that_there_is_not_is_refused_with_the_one_that_was_meant(
    command: tuple[str, ...],
) -> None:
    more = ("--broker", "amqp://127.0.0.1:1/") if command[0] == "aggregator" else ()
    line = says(*command, "mnits", *more)
    assert line.startswith("there is no file mnits and no experiment of this name; did you mean mn")
    assert line.endswith(", ".join(shipped()))


def test_from_python_a_name_is_an_experiment_too() -> None:
    with pytest.raises(fl.UserError, match="did you mean seed"):
        fl.run("sed")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fluffle swe", {"sweep"}),
        ("fluffle run s", {"seed", "shakespeare", "small-clients", "stragglers", "synthetic"}),
        ("fluffle sweep my", {"my.toml"}),
        ("fluffle init x --kind s", {"sklearn", "site", "strategy"}),
        ("fluffle run mnist --clo", {"--clock"}),
    ],
)
def test_bash_completes_commands_options_and_names(
    tmp_path: Path, typed: str, offered: set[str]
) -> None:
    # Given bash with the completion that --install-completion writes, and a file of a person's
    (tmp_path / "my.toml").touch()
    program = tmp_path / "bin" / "fluffle"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "$MAIN" "$@"\n')
    program.chmod(0o755)
    words = typed.split(" ")
    script = f"""
        export PATH={shlex.quote(str(program.parent))}:$PATH
        export MAIN='import sys; sys.argv[0] = "fluffle"; from fluffle.cli import main; main()'
        eval "$(_FLUFFLE_COMPLETE=source_bash fluffle)"
        complete -p fluffle >/dev/null || exit 1
        COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
        _fluffle_completion fluffle
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    # When they press tab
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    # Then it is what they may have meant
    assert set(done.stdout.split()) == offered, done.stderr
