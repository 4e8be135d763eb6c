"""Early stopping: which evaluation ends the run. A pure decision; the coordinator asks.

Decisions are made on validation examples: where an evaluation has metrics of those, as
``validation_accuracy``, they count, and what was measured on test examples is only reported.

An evaluation is better than another by its accuracy, or by its loss where the task has no
accuracy. ``patience`` counts as Keras's ``EarlyStopping`` does: evaluations since the best one that
was ahead of the one before it by more than ``min_delta``. Only an evaluation of a newer version
counts, so that one which comes twice, or from a second evaluator, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fluffle.aggregator.strategies.scores import decisive, score_of
from fluffle.schemas import Evaluation
from fluffle.schemas.experiment import ExperimentTable


class Stopping:
    """Hears of evaluations in the order in which they come."""

    def __init__(
        self, table: ExperimentTable, before: Iterable[tuple[int, Mapping[str, float]]] = ()
    ) -> None:
        """``before``: versions and metrics that were evaluated until now, by version."""
        self._table = table
        self._newest = -1
        self._best: float | None = None
        self._waited = 0
        for version, metrics in before:
            self.reason(version, metrics)

    def reason(self, version: int, metrics: Mapping[str, float]) -> str | None:
        """Why the run ends with this evaluation; None if it goes on."""
        target, accuracy = self._table.target_accuracy, decisive(metrics).get("accuracy", 0.0)
        on = "validation " * (decisive(metrics) is not metrics)
        self._wait(version, metrics)
        if target is not None and accuracy >= target:
            return f"{on}accuracy {accuracy:.4f} reached"
        patience = self._table.patience
        if patience is not None and self._waited >= patience and self._best is not None:
            what = "accuracy" if "accuracy" in decisive(metrics) else "loss"
            return f"no better {on}{what} than {abs(self._best):.4g} in {self._waited} evaluations"
        return None

    def decides_on_test(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation may end the run, and knows of no validation examples."""
        decides = self._table.target_accuracy is not None or self._table.patience is not None
        return decides and decisive(evaluation.metrics) is evaluation.metrics

    def trouble(self, evaluation: Evaluation) -> str | None:
        """Why the run has failed with this evaluation; None if it has not."""
        if evaluation.diverged:
            return (
                f"diverged at version {evaluation.version}: its loss on the test examples is no "
                "number; try a smaller training.learning_rate or aggregation.server_learning_rate"
            )
        if self._table.target_accuracy is not None and "accuracy" not in evaluation.metrics:
            return (
                "experiment.target_accuracy would never apply: evaluations have no accuracy, but "
                f"{', '.join(sorted(evaluation.metrics)) or 'nothing'}"
            )
        return None

    def _wait(self, version: int, metrics: Mapping[str, float]) -> None:
        score = score_of(metrics)
        if version <= self._newest or score is None:
            return
        self._newest = version
        if self._best is None or score > self._best + self._table.min_delta:
            self._best, self._waited = score, 0
        else:
            self._waited += 1
