"""``fluffle report``: the numbers of known runs, in the tables and in what is drawn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.commands.app import app
from fluffle.report import clients, figures, tables
from fluffle.report.confusion import confusion
from fluffle.report.costs import reached, spent, target_of, worker_hours
from fluffle.report.data import Run, _labels, read_runs
from fluffle.report.fairness import by_client
from fluffle.report.interactive import INTERACTIVE
from fluffle.report.page import write_report
from fluffle.report.style import Empty, digits
from fluffle.schemas import Experiment, Plan, UserError
from tests.fluffle.runs import write_run

#: What every run has; only runs of their kind have the others.
SPECIAL = ("privacy", "accuracy-by-client", "confusion")
ORDINARY = [picture for picture in figures.PICTURES if picture.name not in SPECIAL]

PRICED = {"cost": {"price_per_worker_hour": 3600.0, "currency": "EUR"}}
TARGET = {"experiment": {"target_accuracy": 0.5}}


def fluffle(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def real(tmp_path: Path) -> Run:
    return read_runs([write_run(tmp_path / "real")])[0]


@pytest.fixture
def virtual(tmp_path: Path) -> Run:
    folder = write_run(tmp_path / "virtual", clock="virtual", **PRICED, **TARGET)
    return read_runs([folder])[0]


# ---- what is read


def test_a_run_is_read_as_it_was_recorded(real: Run) -> None:
    # What had been spent at each version: updates so far, and 1,100 bytes for each
    assert real.versions.made_s.tolist() == [1, 10, 20]
    assert real.versions.updates.tolist() == [0, 2, 5]
    assert real.versions.bytes.tolist() == [0, 2200, 5500]
    assert real.evaluations.accuracy.tolist() == [0.125, 0.5, 0.75]
    assert real.updates.staleness.tolist() == [0, 0, 1, 0, 1]
    assert real.updates.version.tolist() == [1, 1, 2, 2, 2]
    assert (real.dropouts, real.rejected, real.failures) == (
        *(1, {"late": 2, "too stale": 1}),
        {"no data": 1},
    )
    # Only the virtual clock writes who trained when
    assert real.turns is None


def test_turns_are_joined_from_their_events(virtual: Run) -> None:
    assert virtual.turns is not None
    assert virtual.turns.client.tolist() == list("0102034")
    assert virtual.turns.start_s.tolist() == [0, 1, 2, 3, 4, 5, 6]
    # Then the one that was still training ends with the run, at 20 s
    assert virtual.turns.end_s.tolist() == [2.5, 3.5, 4.5, 5.5, 6.5, 9, 20]
    assert virtual.turns.outcome.tolist() == ["arrived"] * 5 + ["lost", "open"]


def test_a_version_that_two_evaluators_measured_is_one_evaluation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    ledger = Ledger(folder)
    ledger.query("INSERT INTO evaluations SELECT version, 'f', metrics, 9, 0, 99 FROM evaluations")
    ledger.close()
    assert read_runs([folder])[0].evaluations.version.tolist() == [0, 1, 2]


@pytest.mark.tensorflow
def test_a_run_under_the_virtual_clock_is_read_whole(tmp_path: Path) -> None:
    # Given a simulated run in which turns are lost
    from fluffle.simulation.virtual import VirtualRun

    document = {
        "experiment": {"versions": 8},
        "partition": {"examples_per_client": 50},
        "participation": {"assignment_deadline_s": 20.0},
        "evaluation": {"every_updates": 6, "examples": 100},
        "devices": {"dropout": 0.3, "delay": "exponential", "delay_s": 3.0},
    }
    experiment = Experiment.model_validate(document)
    assert VirtualRun(experiment, tmp_path / "run", run_id="run", slots=2).run() == "finished"
    # When it is read
    (run,) = read_runs([tmp_path / "run"])
    # Then its sums are the summary's, and its turns add up
    ledger = Ledger(tmp_path / "run")
    summary = summarise(ledger)
    ledger.close()
    assert run.virtual
    assert run.versions.updates[-1] == summary["updates_counted"] > 20
    assert run.evaluations.accuracy[-1] == summary["accuracy"]
    assert run.turns is not None
    outcomes = dict(zip(*np.unique(run.turns.outcome, return_counts=True), strict=True))
    assert outcomes["lost"] > 0
    assert outcomes["arrived"] >= summary["updates_counted"]
    assert np.all(run.turns.end_s >= run.turns.start_s)
    # And every figure of such a run can be drawn
    assert write_report([tmp_path / "run"], tmp_path / "report").is_file()
    assert {path.stem for path in (tmp_path / "report").glob("*.svg")} == {
        picture.name for picture in ORDINARY
    }


# ---- what it cost


def test_under_the_real_clock_a_worker_counts_from_its_first_turn_to_its_last(real: Run) -> None:
    # w1 is there from 10 - 4 = 6 s to 20 s, w2 from 10 - 8 = 2 s to 10 s
    at = np.array([0.0, 4.0, 8.0, 10.0, 20.0, 99.0])
    assert (worker_hours(real, at) * 3600).tolist() == pytest.approx([0, 2, 8, 12, 22, 22])


def test_under_the_virtual_clock_each_client_in_flight_has_a_worker(virtual: Run) -> None:
    # Five clients, all in flight; an hour costs 3,600
    there = spent(virtual, 1)
    assert there.worker_hours * 3600 == pytest.approx(50)
    assert there.cost == pytest.approx(50)


def test_the_target_is_reached_when_its_version_was_made_not_when_it_was_measured(
    virtual: Run,
) -> None:
    assert reached(virtual, 0.5) == 1
    assert reached(virtual, 0.76) is None
    assert spent(virtual, 1).time_s == 10
    assert target_of([virtual]) == 0.5


def test_the_table_to_the_target_compares_with_the_first_run(tmp_path: Path, virtual: Run) -> None:
    # Given a run that reaches the target a version later than the first, and one that never does
    later = {1: {"accuracy": 0.49}, 2: {"accuracy": 0.51}}
    never = {1: {"accuracy": 0.1}}
    folders = [
        write_run(tmp_path / "later", clock="virtual", metrics=later, **PRICED),
        write_run(tmp_path / "never", clock="virtual", metrics=never, **PRICED),
    ]
    rows = dict(tables.to_target([virtual, *read_runs(folders)]))
    # Then each measure says what it took, and how much more than the first
    assert rows["updates"][:2] == [("2", ""), ("5", "2.5 ×")]
    assert rows["time"][:2] == [("10.0 s", ""), ("20.0 s", "2.0 ×")]
    assert rows["sent"][:2] == [("2.20 kB", ""), ("5.50 kB", "2.5 ×")]
    assert rows["cost"][:2] == [("50.0 EUR", ""), ("100 EUR", "2.0 ×")]
    assert rows["time"][2] == ("not reached, best 10.0 %", "")


def test_virtual_seconds_are_not_compared_with_real_ones(real: Run, virtual: Run) -> None:
    rows = dict(tables.to_target([virtual, real]))
    assert rows["time"][1] == ("10.0 s", "")
    assert rows["updates"][1] == ("2", "1.0 ×")
    assert rows["cost"][1] == ("–", "")


def test_numbers_have_three_digits() -> None:
    values = (0, 0.012345, 4.5, 99.96, 739.2, 12345)
    assert [digits(v) for v in values] == ["0", "0.0123", "4.50", "100", "739", "12,300"]


# ---- what is drawn


def test_progress_is_drawn_by_time_updates_bytes_and_cost(virtual: Run) -> None:
    expected = {
        figures.by_time: [1, 10, 20],
        figures.by_updates: [0, 2, 5],
        figures.by_bytes: [0, 2.2, 5.5],  # kB
        figures.by_cost: [5, 50, 100],  # EUR
    }
    for draw, x in expected.items():
        accuracy, loss = draw([virtual]).axes
        assert accuracy.lines[0].get_xdata().tolist() == pytest.approx(x)
        assert accuracy.lines[0].get_ydata().tolist() == [12.5, 50, 75]
        assert loss.lines[0].get_ydata().tolist() == [2, 1, 0.5]
    assert figures.by_cost([virtual]).axes[0].get_xlabel() == "cost (EUR)"
    assert figures.by_time([virtual]).axes[0].get_xlabel() == "virtual time (s)"


def test_without_a_common_price_cost_is_worker_hours(real: Run, virtual: Run) -> None:
    axes = figures.by_cost([real, virtual]).axes[0]
    assert axes.get_xlabel() == "worker-hours"
    assert axes.lines[1].get_xdata()[-1] == pytest.approx(100 / 3600)


def test_a_task_without_accuracy_has_its_loss_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics={1: {"loss": 1.0}, 2: {"loss": 0.5}})
    (axes,) = figures.by_updates(read_runs([folder])).axes
    assert axes.get_ylabel() == "loss"


def test_a_regression_is_shown_by_its_own_metrics(tmp_path: Path) -> None:
    # Given a run that measures errors and no accuracy
    measured = {
        1: {"loss": 4.0, "mean_absolute_error": 1.5},
        2: {"loss": 1.0, "mean_absolute_error": 0.5},
    }
    (run,) = read_runs([write_run(tmp_path / "run", metrics=measured)])
    # Then figure and table have the loss and these, and nothing claims an accuracy
    loss, error = figures.by_updates([run]).axes
    assert (loss.get_ylabel(), error.get_ylabel()) == ("loss", "mean absolute error")
    assert error.lines[0].get_ydata().tolist() == [1.5, 0.5]
    table = tables.facts([run])
    assert (table["loss at the end"], table["mean absolute error at the end"]) == (
        ["1.00"],
        ["0.500"],
    )
    assert not [name for name in table if "accuracy" in name]


def test_staleness_is_a_share_of_the_counted_updates(real: Run) -> None:
    axes = figures.staleness([real]).axes[0]
    shares = axes.patches[0].get_data()
    assert shares.values.tolist() == pytest.approx([60, 40])
    assert shares.edges.tolist() == [-0.5, 0.5, 1.5]


def test_response_times_are_means_by_client_and_version_from_fast_to_slow(real: Run) -> None:
    axes = clients.response_times([real]).axes[0]
    # Client 0 takes (4 + 2) / 2 on version 0 and 6 on version 1; client 1 takes 8, client 2 takes 9
    cells = axes.images[0].get_array()
    assert cells.filled(-1).tolist() == [[3, 6], [8, -1], [9, -1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]


def test_participation_shows_who_counts_more_often(real: Run) -> None:
    # Given three updates of the fastest client, and one each of the others: 5/3 on average
    figure = clients.participation([real])
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([9 / 5, 3 / 5, 3 / 5])
    (label,) = figure.legends[0].get_texts()
    assert label.get_text() == "real: 3 of 5 clients counted"


def test_the_timeline_has_a_bar_for_each_turn(virtual: Run) -> None:
    axes = clients.timeline([virtual]).axes[0]
    lanes = [label.get_text() for label in axes.get_yticklabels()]
    bars = {
        (lanes[round(bar.get_y() + bar.get_height() / 2)], bar.get_x())
        for bar in axes.patches
        if bar.get_width()
    }
    assert bars == {("0", 0), ("1", 1), ("0", 2), ("2", 3), ("0", 4), ("3", 5), ("4", 6)}
    assert lanes[-1] == "4"  # the slowest


def test_losses_are_counted_by_reason(virtual: Run) -> None:
    axes = figures.losses([virtual]).axes[0]
    kinds = [label.get_text() for label in axes.get_yticklabels()]
    counts = [int(text.get_text()) for text in axes.texts]
    assert dict(zip(kinds, counts, strict=True)) == {
        **{"rejected: late": 2, "rejected: too stale": 1, "failed: no data": 1},
        **{"dropouts": 1, "lost by a simulated device": 1},
    }


def test_what_cannot_be_drawn_says_why(tmp_path: Path, real: Run) -> None:
    with pytest.raises(Empty, match="only runs under the virtual clock"):
        clients.timeline([real])
    quiet = read_runs([write_run(tmp_path / "quiet", metrics={}, losses=False)])
    with pytest.raises(Empty, match="no dropout, no rejected message and no failure"):
        figures.losses(quiet)
    with pytest.raises(Empty, match="no version has been evaluated"):
        figures.by_time(quiet)


def test_a_thousand_clients_share_the_rows_of_a_heat_map(tmp_path: Path) -> None:
    # Given more clients than rows, each with its own response time
    folder = write_run(tmp_path / "run", task={"clients": 1000})
    ledger = Ledger(folder)
    for client in range(1000):
        ledger.query(
            "INSERT INTO updates VALUES"
            " (?, 'counted', 2, 0, ?, ?, 0, 0, 1, 'w1', '{}', 1, ?, 1, 1, '{}')",
            *(f"many:{client}", f"c{client}", 100 + client, 1.0 + client),
        )
    ledger.close()
    cells = clients.response_times(read_runs([folder])).axes[0].images[0].get_array()
    # Then each row is the mean of some neighbours, from fast to slow
    assert cells.shape[0] == 80
    assert np.all(np.diff(cells[:, 0].compressed()) > 0)


# ---- how clients differ, and what is taken for what


@pytest.mark.slow
def test_a_run_that_was_evaluated_by_client_shows_how_they_differ(tmp_path: Path) -> None:
    # Given two runs, one of them evaluated by client
    differing = {"client_accuracy_worst": 0.25, "client_accuracy_p10": 0.5}
    metrics = {1: {"accuracy": 0.75, **differing, "client_accuracy_std": 0.125}}
    folders = [write_run(tmp_path / "fair", metrics=metrics), write_run(tmp_path / "plain")]
    # When they are drawn
    html = write_report(folders, tmp_path / "report").read_text()
    figure = by_client(read_runs(folders))
    # Then the line is the worst tenth, and the band reaches down to the worst
    tenth, spread = (axes.lines[0].get_ydata() for axes in figure.axes)
    assert (np.asarray(tenth).tolist(), np.asarray(spread).tolist()) == ([50], [12.5])
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (25, 50)
    assert '<figure id="accuracy-by-client">' in html
    assert "<td>25.0 %</td>" in html
    assert "<td>12.5 points</td>" in html


def test_the_confusion_matrix_of_the_last_version_is_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    counted = folder / "confusion.json"
    counted.write_text('{"version": 2, "counts": [[3, 1], [0, 0]]}')
    (run,) = read_runs([folder])
    figure = confusion([run])
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25"]
    # One that is of an earlier version is none of this run's as it stands
    counted.write_text('{"version": 1, "counts": [[3, 1], [0, 0]]}')
    with pytest.raises(Empty, match="fluffle export"):
        confusion(read_runs([folder]))
    # And one that somebody has broken is said
    counted.write_text('{"version": 2, "counts": [1]}')
    with pytest.raises(UserError, match="is no confusion matrix"):
        read_runs([folder])


# ---- the page and the command


@pytest.mark.slow
def test_the_report_is_one_page_with_the_figures_beside_it_as_svg_and_pdf(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", clock="virtual", **PRICED, **TARGET)
    result = fluffle("report", folder)
    page = folder / "report" / "report.html"
    assert (result.exit_code, result.output.strip()) == (0, str(page))
    html = page.read_text()
    for picture in ORDINARY:
        assert f'<figure id="{picture.name}">' in html
        root = ElementTree.parse(page.parent / f"{picture.name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert (page.parent / f"{picture.name}.pdf").read_bytes().startswith(b"%PDF-")
    # Then it needs nothing from anywhere, and no id stands for two things
    assert not re.findall(
        r'(?:src|href)="(?!#|data:|[a-z-]+\.(?:svg|pdf)|interactive\.html")[^"]*"', html
    )
    assert "<script" not in html
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    # And writing it again gives the same bytes
    files = [path for path in page.parent.iterdir() if path.name != INTERACTIVE]
    before = {path.name: path.read_bytes() for path in files}
    fluffle("report", folder)
    assert {path.name: path.read_bytes() for path in files} == before


@pytest.mark.slow
def test_several_runs_are_laid_over_each_other_beside_the_first(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, clock="virtual") for name in ("a", "b")]
    result = fluffle("report", *folders, "--target", "0.5", "--price", "72")
    html = (tmp_path / "report" / "report.html").read_text()
    assert result.output.strip() == str(tmp_path / "report" / "report.html")
    assert "<h2>To 50 % accuracy</h2>" in html
    assert "1.00 USD <small>1.0 ×</small>" in html  # 50 worker-seconds
    assert len(figures.by_time(read_runs(folders)).axes[1].lines) == 2


@pytest.mark.slow
def test_a_name_that_looks_like_markup_is_only_a_name(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("<b>&$x_1$", "_b")]
    fluffle("report", *folders, "--out", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;&amp;$x_1$" in html
    assert "<b>" not in html
    assert ">b</text>" in html  # Matplotlib would leave a label out that begins with _


@pytest.mark.slow
def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    fluffle("report", write_run(tmp_path / "virtual", clock="virtual"), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "timeline.svg").exists()
    fluffle("report", write_run(tmp_path / "real"), "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "timeline.svg").exists()
    assert "Who trained when: only runs under" in (tmp_path / "out" / "report.html").read_text()


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    Ledger(tmp_path / "begun").close()
    torn = write_run(tmp_path / "torn", clock="virtual")
    (torn / "events.jsonl").write_text('{"at": 0, "event": "start", "cli')
    run = write_run(tmp_path / "run")
    for arguments, says in (
        ((tmp_path / "empty",), "is no run folder: there is no ledger.sqlite in it"),
        ((tmp_path / "begun",), "holds no run yet: its ledger is empty"),
        ((torn,), r"events.jsonl, line 1: this is no event"),
        ((run, "--target", "95"), "above 0 and at most 1"),
        ((run, "--price", "inf"), "a price is a number"),
        ((run, "--out", run / "ledger.sqlite"), "cannot write the report"),
    ):
        result = fluffle("report", *arguments)
        assert isinstance(result.exception, UserError)
        assert says in str(result.exception)
        assert "\n" not in str(result.exception)


def test_a_price_may_change_when_a_run_is_resumed_and_travels_to_nobody(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    ledger = Ledger(folder)
    ledger.open_run(Experiment.model_validate({"task": {"clients": 5}, **PRICED}), "x", 1)
    ledger.close()
    assert read_runs([folder])[0].experiment.cost is not None
    assert "cost" not in Plan.model_fields


def test_neither_the_aggregator_nor_the_command_line_loads_what_only_the_report_needs() -> None:
    script = (
        "import sys, fluffle.commands.app, fluffle.running, fluffle.commands.service\n"
        "import fluffle.aggregator.service\n"
        "print([m for m in ('matplotlib', 'jinja2', 'tensorflow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_whose_name_is_no_text_has_a_label_that_can_be_drawn() -> None:
    assert _labels([Path(os.fsdecode(b"/runs/caf\xe9"))]) == ["caf\ufffd"]
