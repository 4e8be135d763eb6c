"""Runs of models that measure badly: what is undefined is left out, what diverges is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

TASK = """
import numpy as np
from fluffle import Examples, Task


def sensitivity(y, p):
    import tensorflow as tf
    y = tf.cast(tf.reshape(y, [-1]), tf.float32)
    hit = tf.cast(tf.reshape(p, [-1]) > 0.5, tf.float32)
    return tf.reduce_sum(y * hit) / tf.reduce_sum(y)


class Mine(Task):
    loss = "mean_squared_error"
    metrics = (sensitivity,)

    def model(self):
        import keras
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

    def dataset(self):
        x = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
        y = (np.arange(96) % 2).astype("uint8")
        y[:32] = 0  # client 0 has one class
        return Examples(x, y)

    def test(self):
        return Examples(self.dataset().x[:32], np.zeros(32, "uint8"))  # and so has the hold-out
"""
EXPERIMENT = """
[experiment]
name = "trial"
versions = 3
[task]
name = "task.py:Mine"
clients = 3
[training]
batch_size = 16
[aggregation]
quorum = 3
[evaluation]
every_updates = 3
"""


def fluffle(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fluffle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def test_a_metric_that_is_undefined_costs_neither_client_nor_run(file: Path) -> None:
    # When a metric is 0 / 0 on the examples of one client, and on the test examples
    done = fluffle("run", file, "--json", "--out", file.parent / "run", "--slots", "1")
    # Then all are counted, by their losses
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["status"], summary["failures"]) == ("finished", 0)
    assert summary["metrics"].keys() == {"loss"}
    ledger = LedgerReader(file.parent / "run")
    try:
        counted = ledger.query("SELECT COUNT(*) FROM updates WHERE client = '0' AND turn > 0")
        assert counted[0][0] >= 1
    finally:
        ledger.close()


def test_a_model_that_diverges_is_a_proper_ending_and_again_on_resume(file: Path) -> None:
    # Given a server whose steps are far too long
    run = file.parent / "run"
    steps = "--set", "aggregation.server_learning_rate=1e28"
    for _ in range(2):
        # When it runs, and when it is taken up again
        done = fluffle("run", file, "--out", run, "--slots", "1", *steps)
        # Then one line says at which version, and nothing else
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("fluffle: the run failed: diverged at version "), last
        assert "Traceback" not in done.stdout + done.stderr
    # And so do the report and the check of the run
    assert fluffle("verify", run).returncode == 0
    report = fluffle("report", run)
    assert report.returncode == 0, report.stderr
    assert "diverged at version" in Path(report.stdout.strip()).read_text()
