"""A task of one's own: found by file path, loaded under a private name, never from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.worker.tasks import custom
from fluffle.worker.tasks import registry as tasks
from fluffle.worker.tasks.registry import load_task, open_data, task_of
from fluffle.worker.tasks.task import Task

MINE = """
from pathlib import Path

import numpy as np

from fluffle import Examples, Task


class Mine(Task):
    def model(self):
        import keras
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])

    def dataset(self):
        x = np.load(self.data_dir / "x.npy")
        return Examples(x, (x[:, 0] > 0).astype(np.uint8))

    test = dataset


class Unfinished(Task):
    def model(self):
        return None
"""


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(custom.FOLDER, raising=False)
    yield
    tasks.use(None, None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "my_task.py"
    path.parent.mkdir()
    path.write_text(MINE)
    return path


def plan(name: str = "my_task.py:Mine", clients: int = 2) -> Plan:
    return Plan.of(Experiment.model_validate({"task": {"name": name, "clients": clients}}), "delta")


def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "x.npy", np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4))
    return folder


def test_a_plan_names_a_file_in_the_task_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a folder with the file, and data elsewhere
    monkeypatch.setenv(custom.FOLDER, str(file.parent))
    tasks.use(None, data(tmp_path))
    # When a plan names it
    task = load_task(plan())
    # Then pooled clients share its examples, and a resident client has them all
    assert type(task).__name__ == "Mine"
    assert [len(task.client_indices(client)) for client in ("0", "1", "hospital-7")] == [5, 5, 10]


def test_what_a_person_says_beats_what_a_plan_names(file: Path, tmp_path: Path) -> None:
    tasks.use(f"{file}:Mine", data(tmp_path))
    assert type(load_task(plan("mnist-mlp"))).__name__ == "Mine"
    assert type(open_data(plan("elsewhere.py:Theirs"))).__name__ == "Mine"


@pytest.mark.parametrize(
    "name",
    [
        *("../code/my_task.py:Mine", "{}:Mine", "up/../../x.py:Mine"),
        *("deeper/my_task.py:Mine", "./my_task.py:Mine", "link.py:Mine"),
    ],
)
def test_a_plan_may_not_name_a_file_elsewhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Given a folder for tasks with one deeper in it, and a link to a file elsewhere
    inside = tmp_path / "inside"
    (inside / "deeper").mkdir(parents=True)
    for path in (inside / "my_task.py", inside / "deeper" / "my_task.py"):
        path.write_text("raise SystemExit('this is run')")
    (inside / "link.py").symlink_to(file)
    # When a plan names anything but a file in it, then nothing is run
    monkeypatch.setenv(custom.FOLDER, str(inside))
    with pytest.raises(UserError, match="lies outside"):
        load_task(plan(name.format(file)))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("my_task.py", "is not like my_task.py:MyTask"),
        ("my_task:Mine", "is not like my_task.py:MyTask"),
        ("none.py:Mine", "there is no file .*none.py"),
        ("my_task.py:Yours", "has no class Yours that is a fluffle.Task"),
        ("my_task.py:np", "has no class np that is a fluffle.Task"),
        ("my_task.py:Unfinished", "Unfinished in .* lacks dataset, test"),
        ("broken.py:Mine", r"cannot be loaded: broken.py, line 2: ZeroDivisionError"),
        ("typo.py:Mine", r"cannot be loaded: typo.py, line 1: SyntaxError"),
    ],
)
def test_a_file_that_is_no_task_is_one_line(file: Path, place: str, says: str) -> None:
    (file.parent / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (file.parent / "typo.py").write_text("class Mine(\n")
    with pytest.raises(UserError, match=says):
        tasks.use(str(file.parent / place), None)


def test_without_a_folder_a_person_is_told_how_to_say_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"code does not travel: give --task PATH/my_task.py:Mine"):
        load_task(plan())
    with pytest.raises(UserError, match="there is no data at"):
        tasks.use(None, tmp_path / "none")


def test_what_a_task_of_ones_own_raises_names_its_line(file: Path, tmp_path: Path) -> None:
    tasks.use(f"{file}:Mine", tmp_path)
    with pytest.raises(UserError, match=r"my_task.py, line 15: FileNotFoundError"):
        open_data(plan())


def test_a_site_cannot_train_on_data_that_come_with_fluffle() -> None:
    with pytest.raises(UserError, match="mnist-mlp, brings data of its own"):
        open_data(plan("mnist-mlp"))


@pytest.mark.slow
def test_a_worker_py_of_the_users_shadows_nothing_and_its_neighbours_can_be_imported(
    file: Path, tmp_path: Path
) -> None:
    # Given a folder with a worker.py, and a task that imports a file beside it
    folder = file.parent
    (folder / "worker.py").write_text("raise RuntimeError('this is not it')\n")
    (folder / "shapes.py").write_text("WIDTH = 4\n")
    file.write_text("from shapes import WIDTH\nfrom fluffle import Task\n" + MINE)
    code = (
        "import sys; from fluffle.worker.tasks import registry as tasks; "
        f"tasks.use({str(file) + ':Mine'!r}, None); "
        "import fluffle.worker.training.trainer as t; "
        "print('worker' in t.__name__, 'shapes' in sys.modules)"
    )
    # When it is loaded in that folder
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    # Then it works, and ours is ours
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_what_a_task_is_made_of_is_imported_without_tensorflow() -> None:
    code = "import sys; from fluffle import Examples, Task; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


class Wide(Task):
    """A task with parameters of its own."""

    def __init__(self, seed: int, width: int = 4, *, names: list[str] | None = None) -> None:
        self.made = seed, width, names

    def model(self) -> Any: ...
    def dataset(self) -> Any: ...
    def test(self) -> Any: ...


def test_a_task_is_made_with_the_parameters_of_the_experiment() -> None:
    table = TaskTable(name="w.py:Wide", clients=3, parameters={"width": 9, "names": ["a"]})
    assert Wide.of(table, PartitionTable(), 5).made == (5, 9, ["a"])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"widht": 9}, "task.parameters.widht: Wide.__init__ takes no such (but width, names)"),
        ({"seed": 9}, "task.parameters.seed: seed is set elsewhere, leave it out"),
    ],
)
def test_parameters_that_a_task_does_not_take_are_named(
    parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Wide.of(TaskTable(name="w.py:Wide", parameters=parameters), PartitionTable(), 5)


def test_a_task_of_fluffles_own_takes_no_parameters() -> None:
    with pytest.raises(UserError, match="are for a task of your own, and digits-lr is none"):
        task_of(TaskTable(name="digits-lr", parameters={"a": 1}), PartitionTable(), 5)
