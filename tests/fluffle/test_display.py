"""What a person sees during a run."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from fluffle import logs
from fluffle.display import Display, print_summary, readable

_log = logging.getLogger("fluffle.test")


def test_what_others_wrote_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    # Given a reason for a failure that looks like markup, from somebody's exception
    # When it is logged during a run
    with logs.installed("info", "text"), Display("run"):
        _log.info("client 3 failed: KeyError: '[/weights]' [red]not in[/] index [0]")
    # Then it is there letter by letter (and did not end the aggregator)
    assert "'[/weights]' [red]not in[/] index [0]" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"loss": 0.5, "accuracy": 0.75}, [("accuracy", "75.00%")]),
        (
            {"mean_absolute_error": 12.3456, "loss": 200.0},
            [("loss", "200"), ("mean absolute error", "12.35")],
        ),
        ({"auc": 0.9, "accuracy": 1.0, "loss": 0.1}, [("accuracy", "100.00%"), ("auc", "0.9")]),
        ({}, []),
    ],
)
def test_a_task_without_an_accuracy_shows_its_loss_and_metrics(
    metrics: dict[str, float], shown: list[tuple[str, str]]
) -> None:
    assert readable(metrics) == shown


def test_a_run_that_was_stopped_says_so_and_its_report_line_can_be_pasted(tmp_path: Path) -> None:
    # Given the summary of a stopped run, in a folder whose name a shell would take apart
    folder = tmp_path / "my run [1]"
    summary = {
        **dict.fromkeys(("updates_counted", "dropouts", "failures", "versions"), 3),
        **{"status": "stopped", "detail": "", "updates_rejected": {}, "metrics": {}},
        **{"wall_s": 1.0, "updates_per_s": 3.0, "virtual_s": None, "train_fraction": None},
        **{"peak_rss_mb": 100.0},
    }
    # When a person sees it
    seen = io.StringIO()
    print_summary(Console(file=seen, width=300), summary, folder)
    # Then nothing is empty, and nothing of the name is missing or unquoted
    rows = dict(line.strip().split("  ", 1) for line in seen.getvalue().splitlines())
    assert rows["status"].strip() == "stopped"
    assert rows["run folder"].strip() == str(folder)
    assert rows["report"].strip() == f"fluffle report '{folder}'"
