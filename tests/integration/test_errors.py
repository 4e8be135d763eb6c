"""What a person can do wrong: one line, exit code 2, no traceback."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.integration.processes import PATIENCE_S, Start, Started, verified, wait_for_version
from tests.urls import as_user


def refused(one: Started) -> str:
    """The line that a command ends with; it must be one, and no traceback before it."""
    assert one.wait() == 2, one.output
    assert "Traceback" not in one.output
    last = one.output.strip().splitlines()[-1]
    assert last.startswith("fluffle: "), one.output
    return last


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "task.name=cifar-1000"], "there is no task 'cifar-1000': use one of cifar-cnn"),
        (["--set", "partition.kind=natural"], "this data belongs to nobody in particular"),
        (["--set", "aggregation.quorom=3"], "unknown key aggregation.quorom; did you mean"),
        (["--set", "aggregation.quorum=11"], "can never be reached: at most 10 clients"),
        (["--set", "training.epochs=many"], "training.epochs = 'many'"),
        (["--workers", "2"], "add --broker local"),
    ],
)
def test_a_mistake_in_the_experiment_is_said_before_anything_starts(
    start: Start, experiment: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    out = tmp_path / "out"
    assert says in refused(start("run", experiment, "--out", out, *arguments))
    assert not (out / "ledger.sqlite").exists()


@pytest.mark.slow
def test_a_cache_that_would_outgrow_its_bound_ends_a_run_before_it_begins(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    settings = ["aggregation.strategy=ca2fl", "aggregation.max_cache_mb=4", "task.name=mnist-mlp"]
    arguments = [text for setting in settings for text in ("--set", setting)]
    one = start("run", experiment, "--out", tmp_path / "out", "--clock", "virtual", *arguments)
    said = (
        "ca2fl keeps the last delta of each of 10 clients: 4.07 MB, over aggregation.max_cache_mb"
    )
    assert said in refused(one)


def test_an_experiment_that_is_not_there(start: Start, tmp_path: Path) -> None:
    assert "there is no experiment file" in refused(start("run", tmp_path / "none.toml"))


def test_a_folder_without_a_run_cannot_be_verified(start: Start, tmp_path: Path) -> None:
    assert "there is no ledger.sqlite in it" in refused(start("verify", tmp_path))


@pytest.mark.parametrize("role", ["aggregator", "worker", "evaluator"])
def test_a_broker_that_is_not_there_is_tried_visibly_and_then_named(
    start: Start, experiment: Path, tmp_path: Path, role: str
) -> None:
    more = [experiment, "--out", tmp_path / "out"] if role == "aggregator" else []
    one = start(role, *more, "--broker", "amqp://127.0.0.1:9/", "--connect-timeout", 3)
    last = refused(one)
    assert "127.0.0.1:9" in last
    assert len(one.output.strip().splitlines()) >= 3, "the retries are not visible"


@pytest.mark.rabbitmq
def test_wrong_credentials_are_said_at_once_and_without_the_password(
    start: Start, rabbitmq: Node
) -> None:
    url = as_user(rabbitmq.url, "nobody", "s3cret")
    one = start("worker", "--broker", url)
    assert "nobody" in refused(one)
    assert "s3cret" not in one.output


@pytest.mark.tensorflow
def test_a_run_folder_in_use_and_one_of_another_experiment(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = start("run", experiment, "--out", out)
    wait_for_version(out, 1, run)
    assert "is in use by another aggregator" in refused(start("run", experiment, "--out", out))
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    other = start("run", experiment, "--out", out, "--set", "training.epochs=3")
    assert "another experiment (training.epochs differs)" in refused(other)
    verified(start, out)


@pytest.mark.tensorflow
def test_what_no_worker_can_train_is_refused_before_the_run(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    run = start(
        *("run", experiment, "--out", tmp_path / "out"),
        *("--set", "training.optimizer=nonsense"),
    )
    line = refused(run)
    assert "nonsense" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.tensorflow
@pytest.mark.rabbitmq
def test_a_model_too_large_for_the_broker_is_found_at_version_0(
    start: Start, rabbitmq: Node, experiment: Path, tmp_path: Path
) -> None:
    with Node(settings={"max_message_size": "100000"}) as small:
        run = start("run", experiment, "--out", tmp_path / "out", "--broker", small.url)
        line = refused(run)
    assert "max_message_size" in line
    assert "407 kB is more than the 100 kB" in line


def test_a_run_folder_that_cannot_be_made_is_named(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    said = refused(start("run", experiment, "--out", tmp_path / "file" / "out"))
    assert "cannot make the run folder" in said


@pytest.mark.parametrize("service", ["worker", "evaluator"])
def test_a_service_stopped_before_it_has_found_the_broker_leaves_with_code_0(
    start: Start, service: str
) -> None:
    # Given a service that seeks a broker where there is none
    seeking = start(service, "--broker", "amqp://127.0.0.1:1", "--connect-timeout", 120)
    deadline = time.monotonic() + PATIENCE_S
    while "trying again" not in seeking.output:
        assert time.monotonic() < deadline, seeking.output
        time.sleep(0.05)
    # When it is told to stop
    seeking.kill(signal.SIGTERM)
    # Then that is no failure
    assert seeking.wait() == 0, seeking.output
    assert "Traceback" not in seeking.output
