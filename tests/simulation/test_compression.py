"""Compressed and noisy updates through whole runs: what travels, what is undone, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.schemas import Experiment, UserError
from fluffle.simulation.virtual import VirtualRun

pytestmark = pytest.mark.tensorflow

BASE: dict[str, Any] = {
    "experiment": {"versions": 8, "seed": 3},
    "task": {"name": "digits-lr", "clients": 12},
    "training": {"epochs": 1, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.1},
    "participation": {"concurrency": 6},
    "aggregation": {"quorum": 3, "keep_updates": True},
    "evaluation": {"every_updates": 0},
    "devices": {"delay": "exponential", "delay_s": 2.0, "upload_bytes_per_s": 1e3},
}
SQUEEZED = [{"kind": "top_k", "share": 0.05}, {"kind": "quantise", "bits": 8}]


def simulate(folder: Path, slots: int = 2, **tables: Any) -> list[tuple[str, int]]:
    """(weights' hash, bytes of its updates) of every version; all checks of ``verify`` pass."""
    run = VirtualRun(
        Experiment.model_validate({**BASE, **tables}), folder, run_id="run", slots=slots
    )
    assert run.run() == "finished"
    ledger = Ledger(folder)
    try:
        assert verify(ledger) == []
        assert replay(ledger).problem is None
        rows = ledger.query(
            "SELECT v.weights_sha256, SUM(u.bytes_up) FROM versions v"
            " JOIN updates u ON u.version = v.version GROUP BY v.version ORDER BY v.version"
        )
        return [(sha, size) for sha, size in rows]
    finally:
        ledger.close()


def test_fewer_bytes_travel_and_arrive_sooner(tmp_path: Path) -> None:
    # Given clients that upload a thousand bytes a second
    plain = simulate(tmp_path / "plain")
    squeezed = simulate(tmp_path / "squeezed", update=SQUEEZED)
    # Then a twentieth of 650 values at a byte each, its index and the head take less than a third
    assert sum(size for _, size in squeezed[1:]) < 0.35 * sum(size for _, size in plain[1:])
    finished = [json.loads((tmp_path / name / "events.jsonl").read_text().splitlines()[-1])["at"]
                for name in ("plain", "squeezed")]  # fmt: skip
    assert finished[1] < 0.8 * finished[0]


def test_what_clients_remember_changes_no_byte_with_the_number_of_slots(tmp_path: Path) -> None:
    steps = [{"kind": "clip", "norm": 1.0}, {"kind": "noise", "std": 0.01}, *SQUEEZED]
    runs = [simulate(tmp_path / str(n), n, update=steps) for n in (1, 2, 4)]
    assert runs[0] == runs[1] == runs[2]


def test_a_memory_makes_a_difference(tmp_path: Path) -> None:
    with_memory = simulate(tmp_path / "with", update=SQUEEZED)
    forgetful = [{**SQUEEZED[0], "error_feedback": False}, SQUEEZED[1]]
    without = simulate(tmp_path / "without", update=forgetful)
    # Given first turns that are the same, and later ones in which the memory is added
    assert with_memory[0] == without[0]
    assert with_memory[-1][0] != without[-1][0]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "median", "scaffold"])
def test_strategies_get_whole_deltas(tmp_path: Path, strategy: str) -> None:
    simulate(
        tmp_path / strategy,
        update=[{"kind": "cast", "dtype": "bfloat16"}],
        aggregation={"strategy": strategy, "quorum": 3, "keep_updates": True},
    )


def test_a_strategy_that_mixes_weights_cannot_take_compressed_deltas(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fedasync wants weights"):
        simulate(tmp_path, update=SQUEEZED, aggregation={"strategy": "fedasync"})
