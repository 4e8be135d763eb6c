"""A few hundred schedules of the model; ``make chaos N=100000`` runs more of the same."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.model import faults, setting
from tests.chaos.model.explore import Findings, explain, explore_all
from tests.chaos.model.faults import KINDS, Fault
from tests.chaos.model.minimise import minimise
from tests.chaos.model.world import World

pytestmark = pytest.mark.slow

SCHEDULES = 300


@pytest.fixture(scope="module")
def findings() -> Findings:
    total = Findings()
    for some in explore_all(0, SCHEDULES, processes=2):
        total.add(some)
    return total


def test_no_schedule_breaks_an_invariant(findings: Findings) -> None:
    assert findings.schedules == SCHEDULES
    assert not findings.broken, explain(min(findings.broken))


def test_every_kind_of_fault_strikes(findings: Findings) -> None:
    assert set(findings.faults) == set(KINDS)


def test_processes_crash_between_any_two_effects_and_inside_the_ledger(findings: Findings) -> None:
    wanted = (
        *("aggregator: ledger.begin", "aggregator: ledger.commit", "aggregator: ledger.committed"),
        *("aggregator: store.", "aggregator: ack", "aggregator: assign", "aggregator: publish"),
        *("worker: submit", "worker: confirmed", "worker: ack"),
    )
    for point in wanted:
        assert any(crash.startswith(point) for crash in findings.crashes), findings.crashes


def test_a_worker_ends_at_each_point_of_a_run_whose_clients_keep_state() -> None:
    # Given a run of clients with state, whose workers have a folder in common
    seed = next(seed for seed in range(100) if setting.draw(seed).states == "shared")
    crashes: Counter[str] = Counter()
    for n in range(1, 200):
        # When one worker ends at a point, whichever it is
        world = World(seed, [Fault("crash-worker", n, 0.0, 0)])
        # Then nothing is lost
        assert world.run() == [], n
        crashes += world.crashes
    # And points lie in the saving of a state, and between a state and its update
    assert {"worker: state.torn", "worker: state.saved", "worker: submit"} <= set(crashes)


def test_runs_end_in_every_way_and_cohorts_are_compared_with_undisturbed_ones(
    findings: Findings,
) -> None:
    assert {"finished", "aborted", "failed"} >= set(findings.outcomes)
    assert findings.outcomes["finished"] > SCHEDULES * 0.8
    assert findings.compared > SCHEDULES * 0.05


@pytest.mark.parametrize("seed", [3, 41])
def test_a_seed_replays_to_the_same_history(seed: int) -> None:
    first, second = World(seed, trace=True), World(seed, trace=True)
    assert first.run() == second.run() == []
    assert first.history == second.history
    assert len(first.history) > 100


def test_a_schedule_is_shrunk_to_the_faults_that_matter() -> None:
    # Given eight faults, of which two together break something
    schedule = faults.draw(1) + faults.draw(2)
    needed = (schedule[1], schedule[-2])

    def fails(some: tuple[Fault, ...]) -> bool:
        return set(needed) <= set(some)

    # Then those two are left, in their order
    assert minimise(schedule, fails) == needed
    assert minimise((), fails) == ()
