"""The faults of a seed: the same every time, and every kind among them."""

from __future__ import annotations

from typing import get_args

from tests.chaos.processes.faults import AGGREGATOR, BROKER, WORKERS, Kind, draw


def test_a_seed_says_what_happens_and_more_faults_go_on_where_fewer_end() -> None:
    assert draw(7, 20) == draw(7, 20) == draw(7, 100)[:20]
    assert draw(7, 20) != draw(8, 20)


def test_the_ci_form_has_every_kind_and_kills_everybody() -> None:
    for seed in range(20):
        faults = draw(seed, 20)
        assert {fault.kind for fault in faults} == set(get_args(Kind))
        killed = {fault.target for fault in faults if fault.kind == "kill"}
        assert {AGGREGATOR, BROKER} < killed
        assert killed & set(WORKERS)
