"""MLflow: a run of its tracking server, or of a folder, found again by its run id."""

from __future__ import annotations

import os
from collections.abc import Sequence

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we try again ourselves
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is the summary's

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fluffle.tracking.tracker import About, Point, scalars

#: What MLflow takes at once, and how long a parameter's value may be.
_METRICS, _PARAMETERS, _LENGTH = 1000, 100, 500
#: The tag by which a run that is resumed finds itself.
RUN_ID = "fluffle.run_id"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "aborted": "FAILED", "running": "KILLED"}


class MLflow:
    """Logs to a tracking server, http://…, or with the whole of MLflow to a store of its own."""

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._run = ""

    def open(self, about: About) -> dict[str, int]:
        """Find the run, or create it in the experiment of this name."""
        client, name = self._client, about.experiment.experiment.name
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        ours = f"tags.`{RUN_ID}` = '{about.run_id}'"
        for run in client.search_runs([experiment], ours, max_results=1):
            self._run = run.info.run_id
            client.update_run(self._run, status="RUNNING")
            return {tag: self._last_step(tag) for tag in run.data.metrics}
        tags = {RUN_ID: about.run_id}
        self._run = client.create_run(experiment, tags=tags, run_name=about.name).info.run_id
        parameters = [Param(k, str(v)[:_LENGTH]) for k, v in scalars(about.experiment).items()]
        for start in range(0, len(parameters), _PARAMETERS):
            client.log_batch(self._run, params=parameters[start : start + _PARAMETERS])
        return {}

    def write(self, points: Sequence[Point]) -> None:
        """Log them."""
        metrics = [Metric(p.tag, p.value, round(p.at * 1000), p.step) for p in points]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + _METRICS])

    def close(self, status: str) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._run, _STATUS[status])

    def _last_step(self, tag: str) -> int:
        steps: list[int] = [m.step for m in self._client.get_metric_history(self._run, tag)]
        return max(steps)
