"""``fluffle run`` as a person uses it: real training on real MNIST, in real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.integration.processes import Start, verified, wait_for_version

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

SUMMARY = {
    *("run_id", "status", "versions", "updates_counted", "updates_rejected", "duplicates"),
    *("dropouts", "accuracy", "loss", "wall_s", "virtual_s", "updates_per_s", "train_fraction"),
    *("peak_rss_mb", "weights_sha256", "bytes_up", "bytes_down"),
}


def test_an_embedded_run_learns_and_its_ledger_is_right(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    run = start("run", experiment, "--out", tmp_path / "out", "--slots", 2, "--json")
    assert run.wait() == 0, run.output
    summary = run.summary()
    assert set(summary) >= SUMMARY
    assert (summary["status"], summary["versions"], summary["updates_counted"]) == (
        *("finished", 40, 120),
    )
    assert summary["accuracy"] > 0.9
    assert summary["evaluated_version"] == 40
    assert 0 < summary["train_fraction"] <= 1
    assert "ok: test-" in verified(start, tmp_path / "out")


def test_a_run_on_a_private_rabbitmq_with_worker_processes(
    start: Start, rabbitmq: Node, experiment: Path, tmp_path: Path
) -> None:
    run = start(
        *("run", experiment, "--broker", "local", "--workers", 2, "--slots", 1, "--json"),
        *("--out", tmp_path / "out"),
    )
    assert run.wait() == 0, run.output
    assert run.summary()["accuracy"] > 0.9
    verified(start, tmp_path / "out")


def test_threads_of_one_process_over_a_rabbitmq_that_runs(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    run = start(
        *("run", experiment, "--broker", rabbitmq.url, "--federation", federation, "--json"),
        *("--out", tmp_path / "out", "--set", "experiment.versions=5"),
    )
    assert run.wait() == 0, run.output
    assert run.summary()["versions"] == 5


def test_ctrl_c_stops_cleanly_says_how_to_resume_and_the_same_out_does(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    # Given a run in the middle
    out = tmp_path / "out"
    run = start("run", experiment, "--out", out)
    wait_for_version(out, 5, run)
    # When it is interrupted
    run.kill(signal.SIGINT)
    # Then it ends with the shell's code for that, and the line to type
    assert run.wait() == 130, run.output
    assert f"fluffle run {experiment} --out {out}" in " ".join(run.output.split())
    # And that line goes on
    again = start("run", experiment, "--out", out, "--json")
    assert again.wait() == 0, again.output
    assert "resuming at version" in again.output
    assert again.summary()["updates_counted"] == 120
    verified(start, out)


def test_a_deterministic_cohort_gives_the_same_bytes_on_any_number_of_slots_and_through_a_stop(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    def weights(name: str, slots: int, stop_at: int | None) -> str:
        out = tmp_path / name
        arguments = [
            *("run", experiment, "--out", out, "--slots", slots, "--json"),
            *("--set", "participation.mode=cohort", "--set", "aggregation.deterministic=true"),
            *("--set", "aggregation.on_deadline=extend", "--set", "aggregation.quorum=10"),
            *("--set", "experiment.versions=8"),
        ]
        if stop_at is not None:
            first = start(*arguments)
            wait_for_version(out, stop_at, first)
            first.kill(signal.SIGKILL)
            first.wait()
        run = start(*arguments)
        assert run.wait() == 0, run.output
        return str(run.summary()["weights_sha256"])

    reference = weights("one-slot", 1, None)
    assert weights("three-slots", 3, None) == reference
    assert weights("killed", 2, 3) == reference
