"""When evaluations end a run."""

from __future__ import annotations

import pytest

from fluffle.aggregator.coordinator.stopping import Stopping
from fluffle.aggregator.strategies.scores import score_of
from fluffle.schemas.experiment import ExperimentTable


@pytest.mark.parametrize(
    ("settings", "name", "values", "ends_after"),
    [
        ({}, "accuracy", [0.5, 0.4, 0.3], None),
        ({"target_accuracy": 0.6}, "accuracy", [0.5, 0.6], 2),
        ({"target_accuracy": 0.6}, "loss", [0.5, 0.7], None),
        ({"patience": 1}, "accuracy", [0.5, 0.5], 2),
        ({"patience": 2}, "accuracy", [0.5, 0.4, 0.6, 0.5, 0.6], 5),
        ({"patience": 2}, "loss", [1.0, 0.9, 0.95, 0.8, 0.8, 0.8], 6),
        ({"patience": 2}, "loss", [1.0, 0.9, 0.8, 0.7], None),
        # Slow progress: never ahead of the one before, but in time of the best.
        ({"patience": 3, "min_delta": 0.1}, "accuracy", [0.5, 0.58, 0.65, 0.7, 0.7, 0.7], 6),
        ({"patience": 3, "min_delta": 0.1}, "accuracy", [0.5, 0.52, 0.54, 0.56], 4),
        ({"patience": 1}, "auc", [0.5, 0.5], None),
        ({"patience": 1, "target_accuracy": 0.9}, "accuracy", [0.5, 0.4], 2),
    ],
)
def test_a_run_ends_at_its_target_or_when_its_patience_is_over(
    settings: dict[str, float], name: str, values: list[float], ends_after: int | None
) -> None:
    stopping = Stopping(ExperimentTable.model_validate(settings))
    reasons = [stopping.reason(version, {name: value}) for version, value in enumerate(values)]
    ends = [number for number, reason in enumerate(reasons, 1) if reason]
    assert ends == ([] if ends_after is None else [ends_after])


def test_what_was_evaluated_before_counts_and_what_comes_twice_does_not() -> None:
    table = ExperimentTable(patience=2)
    stopping = Stopping(table, [(0, {"accuracy": 0.6}), (4, {"accuracy": 0.5})])
    assert stopping.reason(4, {"accuracy": 0.5}) is None
    assert stopping.reason(3, {"accuracy": 0.5}) is None
    assert stopping.reason(5, {"accuracy": 0.5}) == "no better accuracy than 0.6 in 2 evaluations"


def test_validation_decides_and_test_is_reported() -> None:
    # Given evaluations that know both
    def both(test: float, validation: float) -> dict[str, float]:
        return {"accuracy": test, "validation_accuracy": validation, "loss": 0.1}

    stopping = Stopping(ExperimentTable(target_accuracy=0.9))
    assert stopping.reason(1, both(0.99, 0.89)) is None
    assert stopping.reason(2, both(0.5, 0.91)) == "validation accuracy 0.9100 reached"
    patient = Stopping(ExperimentTable(patience=1))
    assert patient.reason(1, both(0.1, 0.8)) is None
    assert patient.reason(2, both(0.9, 0.8)) == (
        "no better validation accuracy than 0.8 in 1 evaluations"
    )
    # Then the best version is the best by validation
    assert score_of(both(0.9, 0.2)) == 0.2
    assert score_of({"loss": 1.0, "validation_loss": 3.0}) == -3
