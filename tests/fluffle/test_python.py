"""Fluffle from Python: runs as calls, with files, dicts and classes of one's own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluffle as fl
from fluffle.api.sources import resolve
from fluffle.schemas import user_code
from tests.docs import example, text_of
from tests.fluffle.toy import TABLES, TASK, write_toy

#: What a program may rely on: docs/python.md names each.
PUBLIC = {
    *("After", "Algorithm", "ArrayTask", "ClientData", "ClientUpdate", "Examples", "Experiment"),
    *("Held", "Phase", "Selection", "Trigger"),
    *(
        "Run",
        "State",
        "Stopped",
        "Strategy",
        "StreamedTask",
        "Sweep",
        "Range",
        "SweepStopped",
        "sweep",
        "Task",
        "Tensors",
        "Turn",
    ),
    *("UserError", "Verified", "add_to_buffer", "buffered", "load", "mean_of", "next_version"),
    *("read_csv", "read_images", "read_npz", "read_parquet", "run", "with_model"),
}


def clouds() -> type[fl.ArrayTask]:
    """The toy's task as a notebook has it: a class of no file."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(TASK, space)
    made: type[fl.ArrayTask] = space["Clouds"]
    return made


class Mean:
    """The mean of the deltas."""

    sends = "delta"

    def init(self, weights: fl.Tensors) -> fl.State:
        return {f"model/{key}": array for key, array in weights.items()}

    def accept(self, state: fl.State, update: fl.ClientUpdate, staleness: int) -> fl.State:
        state["buffer/n"] = state.get("buffer/n", np.array(0.0)) + 1
        for key, delta in update.tensors.items():
            state[f"buffer/{key}"] = state.get(f"buffer/{key}", 0.0) + delta.astype(float)
        return state

    def step(self, state: fl.State) -> fl.State:
        model = {k: a for k, a in state.items() if k.startswith("model/")}
        n = state["buffer/n"]
        return {
            k: (a + state[k.replace("model", "buffer", 1)] / n).astype(a.dtype)
            for k, a in model.items()
        }


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path / "mine")


def test_what_is_public_is_listed_and_there() -> None:
    assert set(fl.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(fl, name) is not None
        assert name in dir(fl)


def test_importing_fluffle_and_calling_it_load_nothing_heavy() -> None:
    code = (
        "import sys, fluffle as fl; fl.run, fl.load, fl.Experiment\n"
        "heavy = ('tensorflow', 'keras', 'pandas', 'matplotlib', 'typer', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_of_a_file_has_its_numbers_as_tables(toy: Path) -> None:
    pytest.importorskip("pandas")
    # When a file is run with two settings changed
    run = fl.run(toy, clock="virtual", quorum=2, out="a", progress=False)
    # Then there is a row for each version and for each update
    assert run.history.index.tolist() == list(range(9))
    assert {"time_s", "updates_total", "bytes_up", "accuracy", "loss"} <= set(run.history)
    counted = run.updates[run.updates.disposition == "counted"]
    assert len(counted) == run.summary["updates_counted"] == 16
    assert counted.staleness.min() >= 0
    assert run.accuracy == run.history.accuracy.dropna().iloc[-1] > 0.5
    assert "finished" in repr(run)
    assert "<table>" in run._repr_html_()
    # And it is found again in its folder
    again = fl.load("a")
    assert (again.id, again.experiment.quorum, again.clock) == (run.id, 2, "virtual")
    assert again.verify()


def test_classes_of_this_process_take_the_place_of_names(toy: Path) -> None:
    # Given a task and a strategy that are in no file
    here = {**TABLES, "task": {"name": clouds(), "clients": 6, "parameters": {"rate": 0.25}}}
    run = fl.run(here, strategy=Mean, keep_updates=True, clock="virtual", progress=False)
    # Then they were used, and the run can be replayed, and its model is the task's arrays
    assert run.experiment.task.name == "python:Clouds"
    assert run.experiment.aggregation.strategy == "python:Mean"
    assert run.verify(replay=True).replayed
    assert set(run.model) == {"w", "b"}
    assert run.weights("best").keys() == run.weights().keys()
    assert "class Mean" in (run.folder / "code" / "Mean.py").read_text()
    # And a class that was changed and run again counts, not the one before
    other = clouds()
    other.evaluate = lambda self, weights: {"loss": 0.125}
    assert fl.run({**TABLES, "task": other}, clients=6, progress=False).loss == 0.125


def test_a_worker_in_another_process_needs_a_file_and_is_told_why(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fl.UserError, match="cannot load it, for code does not travel") as told:
        fl.run({**TABLES, "task": clouds()}, clients=6, broker="local", workers=1)
    assert "my_task.py:MyTask" in str(told.value)
    # And so is whoever comes with the name alone
    monkeypatch.delitem(user_code._here, "python:Clouds")
    with pytest.raises(fl.UserError, match="Clouds is a class of the Python process that began"):
        fl.run({**TABLES, "task": "python:Clouds"}, clients=6, progress=False)


def test_the_same_call_gives_a_finished_run_and_another_is_refused(toy: Path) -> None:
    first = fl.run(toy, out="a", clock="virtual", progress=False)
    assert fl.run(toy, out="a", clock="virtual", progress=False).id == first.id
    with pytest.raises(fl.UserError, match=r"another experiment \(aggregation.quorum differs\)"):
        fl.run(toy, out="a", clock="virtual", quorum=1, progress=False)


def test_ctrl_c_leaves_a_run_that_goes_on(toy: Path) -> None:
    # Given a run under the real clock that would take long
    settings = {"versions": 10_000, "devices": None, "every_updates": 0, "pause_s": [0.01, 0.02]}
    threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGINT)).start()
    # When somebody presses Ctrl-C
    with pytest.raises(KeyboardInterrupt) as stopped:
        fl.run(toy, out="a", progress=False, **settings)
    # Then it says how to go on, and what there is can be looked at
    assert isinstance(stopped.value, fl.Stopped)
    assert "out='a'" in str(stopped.value)
    before = stopped.value.run.summary["versions"]
    assert stopped.value.run.verify()
    # And the same call goes on from there
    settings["versions"] = before + 3
    assert fl.run(toy, out="a", progress=False, **settings).summary["versions"] == before + 3


def test_a_run_in_a_thread_of_its_own_works(toy: Path) -> None:
    made: list[fl.Run] = []
    work = lambda: made.append(fl.run(toy, clock="virtual", progress=False))  # noqa: E731
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made[0].status == "finished"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quorom": 3}, "no table of an experiment has a key quorom; did you mean aggregation.quo"),
        ({"parameters": {}}, "parameters is a key of task and of partition"),
        ({"training": 3}, "training is a table: give a dict"),
        ({"quorum": "three"}, "aggregation.quorum = 'three'"),
        ({"task": object()}, "is no value of an experiment"),
        ({"mu": 0.1, "strategy": "fedavg"}, "no table of an experiment has a key mu"),
        ({"strategy": "fedavg", "server_optimizer": "adam"}, "server_optimizer"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(fl.UserError) as told:
        fl.run({}, **settings)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_settings_are_laid_over_each_other() -> None:
    base = fl.Experiment.model_validate({"training": {"epochs": 3}, "task": {"clients": 7}})
    found = resolve(
        base,
        {
            "task": {"name": "digits-lr"},
            "strategy": "fedadam",
            "server_learning_rate": np.float64(0.5),
            "aggregation__quorum": np.int64(4),
            "partition": "iid",
            "epochs": None,
        },
    ).experiment
    assert (found.task.name, found.task.clients, found.training.epochs) == ("digits-lr", 7, 1)
    assert (found.aggregation.strategy, found.quorum, found.partition.kind) == ("fedadam", 4, "iid")


def test_the_page_names_what_is_public_and_its_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = text_of("docs/python.md")
    assert not [name for name in fl.__all__ if f"`{name}`" not in page and f"fl.{name}" not in page]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(example("docs/python.md", "class Heights"), space)
    assert space["run"].status == "finished"
    assert space["run"].loss < 3


def test_stragglers_of_a_preset_are_refused_for_a_task_with_a_loop_of_its_own(
    tmp_path: Path,
) -> None:
    # Given a task in whose loop nobody can do fewer epochs
    source, out = write_toy(tmp_path), tmp_path / "out"
    # When a preset asks for it
    with pytest.raises(fl.UserError, match=r"set devices\.stragglers = 0"):
        fl.run(source, devices={"preset": "phones"}, clock="virtual", out=out)
    # Then nothing has begun, and without it the run ends
    assert not out.exists()
    devices = {"preset": "phones", "stragglers": 0.0}
    run = fl.run(source, devices=devices, clock="virtual", out=out, progress=False)
    assert run.summary["failures"] == 0
