"""Commands of README and docs/, run as they stand there.

Trainings are cut short by the environment; the words are the pages'.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.docs import ROOT, blocks, example, pages
from tests.integration.processes import Start, wait_for_version

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(900)]

Shell = Callable[[str], str]


@pytest.fixture
def sh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A person's shell in a checkout, in a hurry."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    programs = tmp_path / "bin"
    programs.mkdir()
    fluffle = programs / "fluffle"
    fluffle.write_text(f'#!/bin/sh\nexec {sys.executable} -m fluffle "$@"\n')
    fluffle.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FLUFFLE_PARTITION__EXAMPLES_PER_CLIENT", "64")

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_from_a_first_run_to_its_report_its_check_and_its_model(
    sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given somebody who wants version 60, as docs/outputs.md, and may replay, as docs/verify.md
    first = example("docs/index.md", "--out runs/first")
    monkeypatch.setenv("FLUFFLE_AGGREGATION__KEEP_UPDATES", "true")
    # When they type what the pages say
    said = sh(first.replace("experiment.versions=20", "experiment.versions=60"))
    # Then it is all there
    assert "(finished): 60 versions" in said
    assert Path("runs/first/report/report.html").is_file()
    plain, replayed, _ = example("docs/verify.md", "--replay").splitlines()
    sh(plain)
    assert "replayed" in sh(replayed)
    sh(example("README.md", "fluffle verify"))
    sh(example("docs/outputs.md", "--format npz"))
    sh(example("docs/outputs.md", "--format csv"))
    for name in ("model.keras", "best.keras", "metrics.csv", "metrics.jsonl"):
        assert (Path("runs/first") / name).stat().st_size > 1000
    assert Path("served/saved_model.pb").is_file()
    sh(f"{sys.executable} - <<'END'\n{example('docs/outputs.md', 'load_model')}END")


def test_settings_by_the_command_line(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_EXPERIMENT__VERSIONS", "4")
    said = sh(example("docs/index.md", "participation.concurrency=5"))
    assert "8 counted" in said


def test_the_two_simulations_and_their_report(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_EXPERIMENT__VERSIONS", "2")
    sh(example("README.md", "--clock virtual"))
    for language, code in blocks("docs/simulate.md"):
        assert language == "sh"
        sh(code)
    both = example("docs/report.md", "runs/sync runs/async").splitlines()[1]
    said = sh(both)
    assert Path(said.strip().splitlines()[-1]).is_file()


def test_data_are_listed_fetched_and_shown_as_on_the_page(
    sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLUFFLE_PARTITION__EXAMPLES_PER_CLIENT")
    page = "docs/data.md"
    sh(example(page, "fluffle data list"))
    assert Path("who.svg").stat().st_size > 1000
    command, shown = example(page, "$ fluffle data show").split("\n", 1)
    assert bare(sh(command.removeprefix("$ "))) == bare(shown)


def bare(text: str) -> list[str]:
    """Lines without what a terminal adds."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [line.rstrip() for line in plain.splitlines() if line.strip()]


@pytest.mark.rabbitmq
def test_over_rabbitmq_in_one_command_and_as_services(
    start: Start, sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a person with a RabbitMQ of their own
    monkeypatch.setenv("FLUFFLE_EXPERIMENT__VERSIONS", "4")
    local, by_url, *services = [
        line
        for line in example("README.md", "--broker local").splitlines()
        if line.startswith("fluffle")
    ]
    with Node(Path("node")) as node:
        # When they try the three ways of README.md
        assert "4 versions made" in sh(local)
        assert "4 versions made" in sh(re.sub(r"amqp://\S+", node.url, by_url))
        lead, worker, evaluator = (
            start(*line.replace("amqp://…", node.url).split()[1:]) for line in services
        )
        # Then the services finish the run as well
        wait_for_version(Path("runs/first"), 4, worker)
        assert lead.wait() == 0, lead.output
        assert worker.wait() == 0, worker.output
        assert evaluator.wait() == 0, evaluator.output
        doctor, *at_broker = example("docs/troubleshooting.md", "fluffle doctor").splitlines()
        assert "slow aggregation" in sh(doctor)
        for line in at_broker:
            assert "RabbitMQ" in sh(re.sub(r"amqp://\S+", node.url, line))


#: What an experiment has besides the tables that a page shows.
REST = {
    "task": '[task]\nname = "digits-lr"\nclients = 4\n',
    "evaluation": "[evaluation]\nevery_updates = 3\n",
}


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (page, code)
        for page in pages()
        for language, code in blocks(page)
        # Of one's own: run by tests of their pages.
        if language == "toml" and ".py:" not in code and "[task.parameters]" not in code
    ],
)
def test_an_experiment_with_the_tables_of_a_page_runs(
    sh: Shell, monkeypatch: pytest.MonkeyPatch, page: str, shown: str
) -> None:
    tables = tomllib.loads(shown)
    rest = [text for table, text in REST.items() if table not in tables]
    Path("experiment.toml").write_text("\n".join([shown, *rest]))
    monkeypatch.setenv("FLUFFLE_EXPERIMENT__VERSIONS", "2")
    assert "2 versions made" in sh("fluffle run experiment.toml --clock virtual --out out")
