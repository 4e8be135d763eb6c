"""Sweeps: every combination with every seed, each run once, whatever ends the sweep meanwhile."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fluffle as fl
from fluffle.api import results
from fluffle.api.plans import PLAN, load_plan
from fluffle.api.sweeping import status_of
from fluffle.commands.app import app
from fluffle.commands.sweep import grid_values
from tests.fluffle.toy import TABLES, write_toy

GRID = {"quorum": [2, 3], "alpha": [0.5, 5.0]}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path / "mine")


def sweep(toy: Path, grid: Any = GRID, **more: Any) -> fl.Sweep:
    return fl.sweep(toy, grid, **{"seeds": 2, "out": "s", "progress": False, **more})


def made_at(sweep: fl.Sweep) -> dict[str, int]:
    return {run.folder.name: (run.folder / "events.jsonl").stat().st_mtime_ns for run in sweep}


def test_every_combination_runs_with_every_seed(toy: Path) -> None:
    # When a grid is swept
    done = sweep(toy, target=0.5)
    # Then there is a run for each combination and seed, with its settings
    assert len(done.runs) == len(done) == 8
    settings = {
        (r.experiment.quorum, r.experiment.partition.alpha, r.experiment.experiment.seed)
        for r in done
    }
    assert settings == {(q, a, s) for q in (2, 3) for a in (0.5, 5.0) for s in (42, 43)}
    # And each has the bytes that it has by itself
    first = done.runs[0]
    alone = fl.run(toy, clock="virtual", quorum=2, alpha=0.5, progress=False)
    assert first.summary["weights_sha256"] == alone.summary["weights_sha256"]
    # And the tables are those of its runs
    rows = list(csv.DictReader(io.StringIO((done.folder / "table.csv").read_text())))
    assert [(row["quorum"], row["alpha"], row["seeds"]) for row in rows] == [
        *[("2", "0.5", "2"), ("2", "5.0", "2"), ("3", "0.5", "2"), ("3", "5.0", "2")]
    ]
    accuracies = [r["accuracy"] for r in done.rows() if (r["quorum"], r["alpha"]) == (2, 0.5)]
    assert float(rows[0]["accuracy"]) == pytest.approx(sum(accuracies) / 2)
    assert rows[0]["reached"] in ("0", "1", "2")


def test_what_is_done_is_not_done_again_and_a_larger_grid_adds_to_it(toy: Path) -> None:
    before = made_at(sweep(toy, {"quorum": [2]}))
    after = made_at(sweep(toy, {"quorum": [2, 3]}))
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    # And a smaller one takes nothing away
    assert len(sweep(toy, {"quorum": [2]})) == 4
    # But another experiment is refused, before anything runs
    with pytest.raises(fl.UserError, match=r"another experiment \(training.epochs differs\)"):
        sweep(toy, {"quorum": [2]}, epochs=2)
    with pytest.raises(fl.UserError, match="holds no sweep, and is not empty"):
        sweep(toy, out=toy.parent)


def test_ctrl_c_ends_a_sweep_that_goes_on_with_the_same_call(toy: Path) -> None:
    # Given a sweep of which a run takes long
    long = {"versions": 120, "every_updates": 300}

    def interrupt() -> None:
        while not list(Path().glob("s/*/events.jsonl")):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(fl.SweepStopped, match="out='s' goes on") as stopped:
        sweep(toy, {"quorum": [2, 3]}, **long)
    done = len(stopped.value.sweep.runs)
    assert done < 4
    assert len(sweep(toy, {"quorum": [2, 3]}, **long).runs) == 4


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_with_several_processes(toy: Path) -> None:
    # Given a sweep that is killed while it runs
    command = [sys.executable, "-m", "fluffle", "sweep", str(toy), "--grid", "quorum=2,3",
               "--seeds", "4", "--out", "s", "--set", "experiment.versions=300"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (Path("s") / PLAN).exists() or not any(
        status_of(Path("s") / cell.folder) == "finished" for cell in load_plan(Path("s")).cells
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = made_at(fl.Sweep("s"))
    assert 0 < len(before) < 8
    # When the same command is given again, with two processes
    done = subprocess.run([*command, "--jobs", "2", "--json"], capture_output=True, text=True)
    # Then all runs are there, and those that were there are the same
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["runs"], told["done"], told["failed"]) == (8, 8, {})
    after = made_at(fl.Sweep("s"))
    assert {name: after[name] for name in before} == before
    # And no run was done twice
    logs = "".join(path.read_text() for path in Path("s/logs").glob("*.log"))
    ended = [line for line in logs.splitlines() if line.startswith("[")]
    assert len(ended) == len(set(ended)) == 8 - len(before)


def test_a_run_that_fails_says_why_and_the_others_go_on(toy: Path) -> None:
    # Given a task that fails with one of the settings
    task = toy.parent / "clouds.py"
    good = task.read_text()
    wrong = "        if self.rate > 1: raise ValueError('too fast')\n        mine = self.client"
    task.write_text(good.replace("        mine = self.client", wrong))
    grid = {"task.parameters": [{"rate": 0.5}, {"rate": 2.0}]}
    done = sweep(toy, grid, seeds=1)
    # Then that one says so, and the other is done
    assert len(done.runs) == 1
    ((_, why),) = done.failed.items()
    assert "too fast" in why
    # And once it is mended, the same call does what is missing
    task.write_text(good)
    again = sweep(toy, grid, seeds=1)
    assert (len(again.runs), again.failed) == (2, {})
    assert done.runs[0].id == again.runs[0].id


def test_settings_that_differ_beyond_what_a_folders_name_has_room_for_are_two_runs(
    toy: Path,
) -> None:
    # Given combinations of which only the last key of many differs
    same = {
        **{"aggregation.deadline_s": 1000.0, "participation.assignment_deadline_s": 1000.0},
        **{"experiment.max_minutes": 100.0, "evaluation.every_updates": 3},
        **{"partition.examples_per_client": 100, "training.learning_rate": 0.125},
    }
    # When they are swept
    done = sweep(toy, [{**same, "quorum": quorum} for quorum in (2, 3)], seeds=1)
    # Then each is a run
    assert [run.experiment.quorum for run in done] == [2, 3]


def test_what_cannot_be_is_refused_before_anything_runs(toy: Path) -> None:
    for grid, said in (
        ({"quorum": [2, 99]}, "can never be reached"),
        ({"quorom": [2]}, "did you mean aggregation.quorum"),
        ({"quorum": 2}, "give a list of values"),
        ({"quorum": []}, "an empty list"),
        ([{"quorum": 2}, {"quorum": 2}], "the same settings twice"),
    ):
        with pytest.raises(fl.UserError, match=said):
            sweep(toy, grid)
    assert not Path("s").exists()

    class Mine(fl.ArrayTask):
        """Of this process."""

    with pytest.raises(fl.UserError, match="the processes of a sweep cannot load it"):
        fl.sweep({**TABLES, "task": Mine}, {"quorum": [1, 2]}, jobs=2, clients=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quorum=1,3,10", ("quorum", [1, 3, 10])),
        ("strategy=fedavg,fedbuff", ("strategy", ["fedavg", "fedbuff"])),
        ("aggregation.deadline_s=0.5, 2", ("aggregation.deadline_s", [0.5, 2])),
        ("pause_s=[0,1],[0,2]", ("pause_s", [[0, 1], [0, 2]])),
        ("by_client=true,false", ("by_client", [True, False])),
    ],
)
def test_values_of_a_grid_are_those_of_toml_or_words(text: str, expected: object) -> None:
    assert grid_values(text) == expected


# ---- results


ROWS: list[dict[str, Any]] = [
    {"run": "a", "quorum": 1, "seed": 1, "status": "finished", "accuracy": 0.5, "time_s": 10.0},
    {"run": "b", "quorum": 1, "seed": 2, "status": "finished", "accuracy": 0.7, "time_s": 20.0},
    {"run": "c", "quorum": 3, "seed": 1, "status": "finished", "accuracy": None, "time_s": 5.0},
]


def test_results_over_seeds_are_means_and_sample_deviations() -> None:
    first, second = results.over_seeds(ROWS, results.settings_in(ROWS))
    assert first == {
        **{"quorum": 1, "seeds": 2, "accuracy": pytest.approx(0.6), "time_s": 15.0},
        **{"accuracy_std": pytest.approx(0.02**0.5), "time_s_std": pytest.approx(50**0.5)},
    }
    assert (second["accuracy"], second["time_s"], second["time_s_std"]) == (None, 5.0, None)


def test_results_are_written_for_programs_and_for_papers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    read = list(csv.DictReader(io.StringIO(str(results.write_rows(ROWS, "csv", None)))))
    assert [row["accuracy"] for row in read] == ["0.5", "0.7", ""]
    assert json.loads(str(results.write_rows(ROWS, "json", None))) == ROWS
    results.write_rows(ROWS, "parquet", tmp_path / "r.parquet")
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == ROWS
    table = results.latex(results.over_seeds(ROWS, ["quorum"]))
    assert r"1 & 2 & $0.6 \pm 0.1414$ & $15 \pm 7.071$ \\" in table
    assert r"3 & 1 & -- & 5 \\" in table
    assert results.latex([{"a_b": "50 %"}]).splitlines()[2:5] == [
        r"a b \\",
        r"\midrule",
        r"50 \% \\",
    ]


def test_the_command_gives_results_of_runs_and_of_sweeps(toy: Path) -> None:
    sweep(toy, {"quorum": [2, 3]}, seeds=2)
    done = CliRunner().invoke(app, ["results", "s", "--format", "json", "--target", "0.5"])
    rows = json.loads(done.output)
    assert [(row["quorum"], row["seed"]) for row in rows] == [(2, 42), (3, 42), (2, 43), (3, 43)]
    assert {"accuracy", "time_s", "target_updates", "reached", "bytes_up"} <= rows[0].keys()
    one = CliRunner().invoke(
        app, ["results", str(Path("s") / load_plan(Path("s")).cells[0].folder)]
    )
    assert one.output.splitlines()[0].startswith("run,seed,status,")
    over = CliRunner().invoke(app, ["results", "s", "--over-seeds", "--format", "latex"])
    assert over.output.count(r"\\") == 3
    wrong = CliRunner().invoke(app, ["results", "s", "--format", "parquet"])
    assert "needs a file" in str(wrong.exception)


RANGES = {"quorum": fl.Range(1, 6), "alpha": fl.Range(0.01, 100.0, log=True), "epochs": [1, 2]}


def settings_of(done: fl.Sweep) -> list[dict[str, Any]]:
    return [cell.settings for cell in done.plan.cells if cell.seed == 42]


def test_a_random_search_draws_settings_and_a_larger_one_adds_to_it(toy: Path) -> None:
    # Given a search that has ended
    first = sweep(toy, RANGES, random=3)
    assert len(first.runs) == 6
    drawn, made = settings_of(first), made_at(first)
    # When more are wanted
    more = sweep(toy, RANGES, random=5)
    # Then those that were made are as they were, and two came
    assert settings_of(more)[:3] == drawn
    assert len(more.runs) == 10
    assert {name: made_at(more)[name] for name in made} == made
    # And all lie within their ranges, whole where these are
    for one in settings_of(more):
        assert isinstance(one["aggregation.quorum"], int)
        assert 1 <= one["aggregation.quorum"] <= 6
        assert 0.01 <= one["partition.alpha"] <= 100
        assert one["training.epochs"] in (1, 2)


def test_a_range_by_logarithms_has_as_many_below_its_middle_as_above() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([fl.Range(0.01, 100.0, log=True).draw(rng) for _ in range(2000)])
    assert abs((drawn < 1).mean() - 0.5) < 0.04
    whole = [fl.Range(1, 4).draw(rng) for _ in range(2000)]
    shares = np.bincount(whole, minlength=5)[1:] / 2000
    assert np.abs(shares - 0.25).max() < 0.04


@pytest.mark.parametrize(
    ("grid", "random", "line"),
    [
        ({"quorum": fl.Range(1, 6)}, None, "say how many settings to draw"),
        ({"quorum": fl.Range(1, 3)}, 9, "only 3 settings or so, and 9 were wanted"),
        ([{"quorum": 3}], 2, "give a dict"),
        ({}, 2, "give ranges, or lists of values"),
        ({"quorum": fl.Range(11, 12)}, 2, "quorum"),
        ({"quorums": fl.Range(1, 2)}, 2, "did you mean aggregation.quorum"),
    ],
)
def test_a_random_search_that_cannot_be_is_refused_before_anything_runs(
    toy: Path, grid: Any, random: int | None, line: str
) -> None:
    with pytest.raises(fl.UserError, match=line):
        sweep(toy, grid, random=random)
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("quorum", "write KEY=LOW..HIGH"),
        ("quorum=1..x", "write KEY=LOW..HIGH"),
        ("quorum=6..1", "from a number to a larger one"),
        ("alpha=0..1:log", "begins above 0"),
    ],
)
def test_a_range_that_is_none_is_refused(toy: Path, option: str, line: str) -> None:
    words = ["sweep", str(toy), "--random", "2", "--range", option, "--out", "s"]
    result = CliRunner().invoke(app, words)
    assert line in str(result.exception)
    assert not Path("s").exists()


def test_the_command_draws_what_python_draws(toy: Path) -> None:
    words = ["sweep", str(toy), "--random", "2", "--out", "c", "--json"]
    words += ["--range", "quorum=1..6", "--range", "alpha=0.01..100.0:log", "--grid", "epochs=1,2"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(result.stdout.splitlines()[-1])["done"] == 2
    drawn = [cell.settings for cell in load_plan(Path("c")).cells]
    orders = {"quorum": fl.Range(1, 6), "alpha": fl.Range(0.01, 100.0, log=True), "epochs": [1, 2]}
    in_the_order_of_the_command = {"epochs": orders.pop("epochs"), **orders}
    assert drawn == settings_of(sweep(toy, in_the_order_of_the_command, random=2, seeds=1))


def test_a_target_is_reached_on_validation_examples_where_there_are_any(toy: Path) -> None:
    # Given a task that is splendid on the test examples, and good for nothing on others
    code = toy.parent / "clouds.py"
    measured = '"accuracy": float((chances.argmax(axis=1) == y).mean())'
    assert measured in code.read_text()
    code.write_text(
        code.read_text().replace(measured, '"accuracy": 0.99, "validation_accuracy": 0.1')
    )
    # When a sweep has a target
    (row,) = sweep(toy, {"quorum": [2]}, seeds=1).rows(target=0.5)
    # Then it goes by what the run itself decides by, and reports the other
    assert (row["reached"], row["accuracy"]) == (False, 0.99)
