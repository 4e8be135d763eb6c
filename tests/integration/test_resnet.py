"""A model of the size of those in keras.applications trains over RabbitMQ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs import ROOT
from tests.integration.processes import Start, verified

EXPERIMENT = """
[experiment]
name = "resnet"
versions = 2
[task]
name = "resnet_task.py:ResNet18"
clients = 2
[training]
epochs = 1
batch_size = 4
optimizer = "sgd"
learning_rate = 0.01
[participation]
assignment_deadline_s = 600
[aggregation]
quorum = 2
deadline_s = 600
[evaluation]
every_updates = 4
"""
#: Of all its weights, float32: 11,173,962 trained and 9,600 statistics of batch normalisation.
WEIGHTS = 4 * (11_173_962 + 9_600)


@pytest.mark.slow
@pytest.mark.rabbitmq
@pytest.mark.tensorflow
@pytest.mark.timeout(1200)
def test_a_resnet_18_trains_through_rabbitmq(start: Start, tmp_path: Path) -> None:
    # Given 45 MB of weights, and eight images for two clients
    shutil.copy(ROOT / "tests" / "integration" / "resnet_task.py", tmp_path)
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    # When a worker process trains them over a broker
    where = ("--broker", "local", "--workers", 1, "--slots", 1, "--out", tmp_path / "out")
    run = start("run", tmp_path / "experiment.toml", *where, "--json")
    run.process.wait(1000)
    # Then two versions are made, of updates that are as large as the model
    assert run.wait() == 0, run.output
    summary = run.summary()
    assert (summary["versions"], summary["failures"]) == (2, 0)
    assert summary["updates_counted"] >= 4
    each = summary["bytes_up"] / summary["updates_counted"]
    assert WEIGHTS < each < 2 * WEIGHTS
    verified(start, tmp_path / "out")
