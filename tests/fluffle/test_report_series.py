"""Runs that differ in their seed alone are one line with a band, one column, and are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fluffle.report import figures, tables
from fluffle.report.curves import AXES, band
from fluffle.report.data import Run, read_runs
from fluffle.report.page import write_report
from fluffle.report.series import series_of, together
from fluffle.report.style import LINES, SERIES, line
from tests.fluffle.runs import write_run

#: Accuracies at versions 1 and 2, by method and seed.
CURVES = {
    ("plain", 1): (0.50, 0.70),
    ("plain", 2): (0.60, 0.80),
    ("plain", 3): (0.40, 0.75),
    ("prox", 1): (0.60, 0.75),
    ("prox", 2): (0.76, 0.90),
    ("prox", 3): (0.50, 0.81),
}
MU = {"plain": {}, "prox": {"training": {"proximal_mu": 0.1}}}


def write(
    folder: Path, method: str, seed: int, accuracies: tuple[float, float], **more: Any
) -> Path:
    metrics = {v: {"accuracy": a, "loss": 1 - a} for v, a in enumerate(accuracies, 1)}
    experiment = {"name": method, "seed": seed, "target_accuracy": 0.75}
    tables = {"experiment": experiment, **MU[method], **more}
    return write_run(folder / f"{method}-{seed}", clock="virtual", metrics=metrics, **tables)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return read_runs([write(tmp_path, *key, curve) for key, curve in CURVES.items()])


def test_seeds_are_put_together_and_named_by_what_differs(runs: list[Run]) -> None:
    plain, prox = series_of(runs)
    assert (plain.seeds, prox.seeds) == ((1, 2, 3), (1, 2, 3))
    assert (plain.label, prox.label) == ("plain", "proximal_mu 0.1")
    # And what is counted is that of all seeds
    assert len(together(plain).updates.client) == 3 * len(runs[0].updates.client)
    assert together(plain).dropouts == 3 * runs[0].dropouts


def test_one_seed_of_each_and_one_run_twice_stay_what_they_are(
    runs: list[Run], tmp_path: Path
) -> None:
    assert [one.label for one in series_of([runs[0], runs[3]])] == ["plain-1", "prox-1"]
    twice = read_runs([write(tmp_path / name, "plain", 1, (0.1, 0.2)) for name in ("a", "b")])
    assert len(series_of(twice)) == 2


def test_the_line_is_the_mean_and_the_band_a_standard_deviation(runs: list[Run]) -> None:
    x, mean, spread = band(series_of(runs)[0], AXES["updates"](runs)[0], "accuracy")
    assert x.tolist() == [2, 5]
    assert mean.tolist() == pytest.approx([0.5, 0.75])
    assert spread.tolist() == pytest.approx([0.1, 0.05])
    accuracy = figures.by_updates(runs).axes[0]
    assert len(accuracy.lines) == 3  # two series, and the target
    assert accuracy.lines[0].get_ydata().tolist() == pytest.approx([50, 75])
    low, high = accuracy.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((40, 80))


def test_tables_have_a_column_for_each_series(runs: list[Run]) -> None:
    facts = tables.facts(runs)
    assert facts["accuracy at the end"] == ["75.0 ± 5.0 %", "82.0 ± 7.5 %"]
    assert facts["strategy"][1].startswith("fedbuff with FedProx, mu = 0.1, K = 3")
    assert tables.settings(runs) == {
        "training.proximal_mu": ["–", "0.1"],
        "seed": ["1 to 3", "1 to 3"],
    }


def test_who_never_reaches_the_target_is_counted_and_said(runs: list[Run]) -> None:
    rows = dict(tables.to_target(runs))
    # Two of three plain runs reach 75 %, at the second version; of the others one at the first
    assert rows["updates"] == [("5 (2 of 3 reach it)", ""), ("4 ± 1.7", "0.80 ×")]
    none = dict(tables.to_target([run for run in runs if run.label in ("plain-1", "prox-1")]))
    assert none["updates"][0] == ("not reached, best 70.0 %", "")


def test_series_are_compared_seed_by_seed(runs: list[Run]) -> None:
    metric, ((label, difference, p, seeds),) = tables.comparison(runs)
    assert (metric, label, seeds) == ("accuracy", "proximal_mu 0.1", "3")
    # As SciPy's own paired test has it
    plain, prox = ([c[1] for (m, _), c in CURVES.items() if m == method] for method in MU)
    expected = stats.ttest_rel(prox, plain)
    low, high = (100 * bound for bound in expected.confidence_interval(0.95))
    assert float(p) == pytest.approx(expected.pvalue, rel=0.05)
    assert difference == f"+7 points [{low:+.3g}, {high:+.3g}]"


def test_seeds_that_do_not_meet_are_not_compared(tmp_path: Path) -> None:
    keys = [("plain", 1), ("plain", 2), ("prox", 3), ("prox", 4)]
    runs = read_runs([write(tmp_path, *key, (0.1, 0.2 + key[1] / 10)) for key in keys])
    assert tables.comparison(runs)[1] == [("proximal_mu 0.1", "–", "–", "no two common seeds")]


@pytest.mark.slow
def test_a_page_of_fifteen_runs_has_rows_for_them_and_room_for_every_figure(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    # Given fifteen runs with nothing in common, under long names
    folders = [
        write_run(tmp_path / f"a-rather-long-name-of-run-{n}", clock="virtual",
                  training={"learning_rate": 0.1 + n})
        for n in range(15)
    ]  # fmt: skip
    page = write_report(folders, tmp_path / "report").read_text()
    # Then no axes have collapsed, and each run has a row
    assert not [w for w in recwarn if "constrained_layout" in str(w.message)]
    assert '<tr><th scope="row">a-rather-long-name-of-run-14</th>' in page
    assert "The first 4 of 15 are shown." in page


def test_twenty_four_runs_can_be_told_apart() -> None:
    count = len(SERIES) * len(LINES)
    assert len({tuple(line(index).values()) for index in range(count)}) == count == 24


def test_nothing_is_drawn_where_seeds_share_no_stretch(tmp_path: Path) -> None:
    # Given two seeds of which one was evaluated at its first version alone, the other at its last
    one = write_run(tmp_path / "a", metrics={1: {"accuracy": 0.1}}, experiment={"seed": 1})
    two = write_run(tmp_path / "b", metrics={2: {"accuracy": 0.1}}, experiment={"seed": 2})
    runs = read_runs([one, two])
    x, mean, _ = band(series_of(runs)[0], AXES["updates"](runs)[0], "accuracy")
    assert len(x) == len(mean) == 0
    assert np.isfinite(figures.by_updates(runs).axes[0].get_xlim()).all()
