"""A task of one's own in a folder of one's own, as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import PATIENCE_S, Start, verified
from tests.integration.test_errors import refused

pytestmark = pytest.mark.tensorflow

TASK = """
import numpy as np

from shapes import WIDTH

from fluffle import Examples, Task


class Blobs(Task):
    def model(self):
        import keras

        layers = [keras.Input((WIDTH,)), keras.layers.Dense(2, activation="softmax")]
        return keras.Sequential(layers)

    def dataset(self):
        x = np.random.default_rng(0).normal(size=(400, WIDTH)).astype(np.float32)
        return Examples(x, (x.sum(axis=1) > 0).astype(np.uint8))

    def test(self):
        x, y = self.dataset()
        return Examples(x[:100], y[:100])
"""

EXPERIMENT = """
[experiment]
name = "mine"
versions = 20
[task]
name = "my_task.py:Blobs"
clients = 4
[training]
optimizer = "sgd"
learning_rate = 0.5
[evaluation]
every_updates = 12
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a person has: an experiment, a task with a file beside it, and a ``worker.py``."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_task.py").write_text(TASK)
    (mine / "shapes.py").write_text("WIDTH = 8\n")
    (mine / "worker.py").write_text("raise SystemExit('this is not the worker')\n")
    (mine / "experiment.toml").write_text(EXPERIMENT)
    return mine


def test_an_experiment_with_a_task_beside_it_runs_from_anywhere(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    run = start("run", folder / "experiment.toml", "--out", tmp_path / "out", "--json")
    assert run.wait() == 0, run.output
    summary = run.summary()
    assert (summary["versions"], summary["updates_counted"]) == (20, 60)
    assert summary["accuracy"] > 0.9
    verified(start, tmp_path / "out")


@pytest.mark.rabbitmq
def test_worker_processes_find_it_too_and_a_worker_py_where_one_stands_is_not_ours(
    folder: Path,
) -> None:
    # Given a person who stands in the folder, with the command on the path
    command = [sys.executable, "-P", "-m", "fluffle", "run", "experiment.toml"]
    options = ["--broker", "local", "--workers", "1", "--out", "out", "--json"]
    # When they run it with a worker process
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        env={**os.environ, "FLUFFLE_TASK": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    # Then it is our worker, with their task
    assert done.returncode == 0, done.stderr
    assert '"versions": 20' in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name = 'my_task.py:Blobs'", "name = 'your_task.py:Blobs'"), "there is no file"),
        (("name = 'my_task.py:Blobs'", "name = '../x.py:Blobs'"), "lies outside"),
        (("def model", "def modell"), "Blobs in"),
        (("self.dataset()", "self.dataset[0]"), "my_task.py, line 21: TypeError"),
        (("keras.Input", "keras.input"), "my_task.py, line 13: AttributeError"),
        (("x.sum", "x.summ"), "my_task.py, line 18: AttributeError"),
    ],
)
def test_a_mistake_in_it_is_one_line(
    start: Start, folder: Path, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    for name in ("my_task.py", "experiment.toml"):
        text = (folder / name).read_text().replace('"my_task.py:Blobs"', "'my_task.py:Blobs'")
        (folder / name).write_text(text.replace(*change))
    options = ("--set", "experiment.versions=1")
    run = start("run", folder / "experiment.toml", "--out", tmp_path / "out", *options)
    assert says in refused(run)


def test_residents_cannot_reach_a_run_within_one_process(start: Start, folder: Path) -> None:
    settings = ("--set", "participation.residents=['lab-3']")
    assert "over a RabbitMQ that they share" in refused(
        start("run", folder / "experiment.toml", *settings)
    )
    identity = ("--set", "participation.identity='broker'")
    assert "needs a broker that knows users" in refused(
        start("run", folder / "experiment.toml", *identity)
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--client-id", "lab.3"), "use letters, digits, - and _"),
        (("--client-id", "17"), "not digits alone"),
        (("--client-id", "lab-3"), "give --task FILE.py:Class, or set FLUFFLE_TASK"),
        (("--client-id", "lab-3", "--task", "x.py:Y", "--simulate-devices"), "never simulates"),
        (("--client-id", "lab-3", "--slots", 2), "leave out --name, --slots and --lanes"),
        (("--lanes", 4, "--slots", 2), "--lanes says how many turns"),
        (("--client-id", "lab-3", "--task", "none.py:Mine"), "there is no file"),
        (("--data", "/nowhere"), "there is no data at /nowhere"),
    ],
)
def test_a_site_that_is_started_wrongly_is_told_before_it_seeks_a_broker(
    start: Start, options: tuple[object, ...], says: str
) -> None:
    assert says in refused(start("worker", "--broker", "amqp://127.0.0.1:9/", *options))
