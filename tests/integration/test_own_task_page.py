"""The tasks of docs/own-task.md, run as they stand there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.docs import example
from tests.integration.processes import Start
from tests.integration.test_errors import refused

PAGE = "docs/own-task.md"

SHORT = """
[experiment]
versions = 12
[training]
epochs = 5
batch_size = 8
optimizer = "sgd"
learning_rate = 0.05
[evaluation]
every_updates = 12
"""

pytestmark = pytest.mark.tensorflow


def test_the_first_task_and_its_experiment(start: Start, tmp_path: Path) -> None:
    # Given the file and the tables of the page
    (tmp_path / "weather.py").write_text(example(PAGE, "class Weather(Task)"))
    (tmp_path / "mine.toml").write_text(SHORT + example(PAGE, 'name = "weather.py:Weather"'))
    # When they are run
    run = start("run", tmp_path / "mine.toml", "--out", tmp_path / "out", "--json")
    # Then numbers are learned, and nothing claims an accuracy
    assert run.wait() == 0, run.output
    summary = run.summary()
    assert (summary["versions"], summary["accuracy"]) == (12, None)
    assert summary["loss"] < 0.3
    assert summary["metrics"]["mean_absolute_error"] < 0.5


def visits(folder: Path) -> None:
    """Pain is being older than fifty, in three wards."""
    folder.mkdir(exist_ok=True)
    rows = [
        f"{age},ward-{age % 3},{age % 7},{'yes' if age > 50 else 'no'}" for age in range(20, 80)
    ]
    (folder / "visits.csv").write_text("\n".join(["age,ward,stay,pain", *rows, ""]))


def test_the_task_on_a_table(start: Start, tmp_path: Path) -> None:
    # Given the file of the page, and a table in another folder
    (tmp_path / "pain.py").write_text(example(PAGE, "class Pain(Task)"))
    tables = '[task]\nname = "pain.py:Pain"\nclients = 3\n[partition]\nkind = "natural"\n'
    (tmp_path / "mine.toml").write_text(SHORT + tables)
    visits(tmp_path / "data")
    where = (tmp_path / "mine.toml", "--out", tmp_path / "out")
    # When somebody forgets to say so, they are told which file is missing
    assert f"there is no file or folder {tmp_path}/visits.csv" in refused(start("run", *where))
    # And with it the wards learn
    run = start("run", *where, "--data", tmp_path / "data", "--json")
    assert run.wait() == 0, run.output
    assert run.summary()["accuracy"] > 0.75


@pytest.mark.rabbitmq
def test_worker_processes_read_the_same_data(start: Start, tmp_path: Path) -> None:
    (tmp_path / "pain.py").write_text(example(PAGE, "class Pain(Task)"))
    tables = '[task]\nname = "pain.py:Pain"\nclients = 3\n[partition]\nkind = "natural"\n'
    (tmp_path / "mine.toml").write_text(SHORT + tables)
    visits(tmp_path / "data")
    where = ("--out", tmp_path / "out", "--data", tmp_path / "data", "--json")
    run = start("run", tmp_path / "mine.toml", *where, "--broker", "local", "--workers", 1)
    assert run.wait() == 0, run.output
    assert run.summary()["versions"] == 12


def test_the_streamed_task(start: Start, tmp_path: Path) -> None:
    # Given a file of rows for each of two clients, and one to test on
    rng = np.random.default_rng(0)
    for name in ("client-0", "client-1", "test"):
        x = rng.normal(size=(200, 3))
        np.savetxt(tmp_path / f"{name}.csv", np.c_[x, x.sum(axis=1) > 0], "%.4f", ",")
    (tmp_path / "signs.py").write_text(example(PAGE, "class Signs(StreamedTask)"))
    tables = '[task]\nname = "signs.py:Signs"\nclients = 2\n'
    (tmp_path / "mine.toml").write_text(SHORT.replace("0.05", "0.5") + tables)
    # When they are run
    where = (tmp_path / "mine.toml", "--out", tmp_path / "out")
    run = start("run", *where, "--json", "--set", "aggregation.quorum=2")
    # Then it learns, and its accuracy is called so
    assert run.wait() == 0, run.output
    assert run.summary()["accuracy"] > 0.9
    # And the virtual clock says what it lacks
    out = ("--out", tmp_path / "virtual", "--clock", "virtual", "--set", "aggregation.quorum=2")
    said = "Signs does not say: give it a method examples(client)"
    assert said in refused(start("run", tmp_path / "mine.toml", *out))
    # And once it has that, it runs there as well
    with (tmp_path / "signs.py").open("a") as file:
        file.write("\n    def examples(self, client):\n        return 200\n")
    delay = ("--set", "devices.delay_s=1", "--set", "devices.delay=constant")
    out = ("--out", tmp_path / "again", *out[2:])
    run = start("run", tmp_path / "mine.toml", *out, *delay, "--json")
    assert run.wait() == 0, run.output
    assert run.summary()["virtual_s"] > 0
