"""What a person sees during a run."""

from __future__ import annotations

import pytest

from fluffle.display import Display, readable


def test_what_others_wrote_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    # Given a reason for a failure that looks like markup, from somebody's exception
    display = Display("run")
    # When it is said
    display.say("client 3 failed: KeyError: '[/weights]' [red]not in[/] index [0]")
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
