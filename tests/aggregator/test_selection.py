"""Who trains next: among whom, by which rule, and the same again after a crash."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.coordinator.selection import Selector
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.selections.base import Counted, Moment, Selection
from fluffle.aggregator.selections.min_separation import MinSeparation
from fluffle.aggregator.verify import verify
from fluffle.broker import Envelope
from fluffle.schemas import Experiment, UserError
from tests.aggregator.scripted import Federation


def moment(clients: int = 10, turn: int = 1, **changes: Any) -> Moment:
    fields: dict[str, Any] = {"version": 0, "together": True, "may": lambda client: True}
    return Moment(42, turn, clients=clients, **{**fields, **changes})


def counted(client: str, version: int, **changes: Any) -> Counted:
    fields: dict[str, Any] = {"examples": 10, "metrics": {"loss": 1.0}, "duration_s": 1.0}
    return Counted(client, version, base_version=version - 1, **{**fields, **changes})


def experiment(**tables: Any) -> Experiment:
    return Experiment.model_validate({"training": {"optimizer": "sgd"}, **tables})


def separated(clients: int, separation: int, quorum: int = 2, **participation: Any) -> Experiment:
    return experiment(
        task={"clients": clients},
        participation={
            "selection": "min-separation",
            "selection_parameters": {"separation": separation},
            **participation,
        },
        aggregation={"quorum": quorum},
    )


# ---- who is there


def test_among_those_there_each_is_as_likely_and_nobody_else_is_chosen() -> None:
    # Given ten clients of whom three are there
    there = {"2", "5", "9"}
    selector = Selector(
        experiment(task={"clients": 10}), arrival=lambda c, now: now if c in there else 1e9
    )
    # When many turns are given, each for itself
    chosen = Counter(
        selector.choose(turn, 0, 1, 0.0, taken=(), in_buffer=set())[0] for turn in range(1, 1501)
    )
    # Then they are theirs alone, in equal shares
    assert set(chosen) == there
    assert [n / 1500 for n in chosen.values()] == pytest.approx([1 / 3] * 3, abs=0.05)


def test_where_nobody_is_there_the_next_arrival_is_known_and_then_somebody_is_chosen() -> None:
    # Given clients that come at 5, 15, 25, … seconds
    selector = Selector(
        experiment(task={"clients": 4}), arrival=lambda c, now: max(now, 10.0 * int(c) + 5)
    )

    def choose(now: float) -> list[str]:
        return selector.choose(1, 0, 1, now, taken={"0"}, in_buffer=set())

    # When the first of them has a turn already, and another one is wanted
    assert choose(7.0) == []
    # Then it waits for the second, and not for longer
    assert selector.next_arrival == 15.0
    assert choose(14.9) == []
    assert choose(15.0) == ["1"]


def test_who_is_done_and_there_is_chosen_though_all_others_are_away() -> None:
    selector = Selector(
        experiment(task={"clients": 3}), arrival=lambda c, now: now if c == "0" else 100.0
    )
    assert selector.choose(1, 0, 1, 0.0, taken={"0"}, in_buffer=set()) == []
    assert selector.next_arrival == 100.0
    selector.freed("0")
    assert selector.choose(2, 0, 1, 1.0, taken=(), in_buffer=set()) == ["0"]


def test_with_the_old_way_those_who_are_away_have_turns_too() -> None:
    old = experiment(task={"clients": 3}, participation={"only_available": False})
    selector = Selector(old, arrival=lambda c, now: 1e9)
    assert len(selector.choose(1, 0, 3, 0.0, taken=(), in_buffer=set(), together=True)) == 3


# ---- min-separation


def test_min_separation_chooses_nobody_within_b_versions() -> None:
    # Given b = 3, and clients that counted in versions 1 and 2
    selection = MinSeparation(3)
    selection.observe(1, [counted("0", 1), counted("1", 1)])
    selection.observe(2, [counted("2", 2)])
    # Then version 3 may count none of them, version 4 those of version 1, version 5 all
    assert set(selection.choose(moment(4, version=2), 4)) == {"3"}
    assert set(selection.choose(moment(4, version=3), 4)) == {"0", "1", "3"}
    assert set(selection.choose(moment(4, version=4), 4)) == {"0", "1", "2", "3"}
    # And never who is in the open buffer
    assert set(selection.choose(moment(4, version=4, in_buffer={"2"}), 4)) == {"0", "1", "3"}


@pytest.mark.parametrize("mode", ["concurrent", "cohort"])
def test_a_run_keeps_its_clients_apart_through_crashes(tmp_path: Path, mode: str) -> None:
    # Given eight clients, two to a version, b = 4: the fewest that there can be
    of_mode: dict[str, Any] = (
        {"concurrency": 3} if mode == "concurrent" else {"mode": "cohort", "sampling_rate": 0.25}
    )
    federation = Federation(
        tmp_path,
        experiment={"versions": 12},
        participation={
            "selection": "min-separation",
            "selection_parameters": {"separation": 4},
            **of_mode,
        },
        aggregation={"quorum": 2},
    )
    # When the aggregator dies again and again, at any place of a version
    for answers in (3, 1, 4, 2, 3):
        federation.answer(answers)
        federation.die()
        federation.start()
    federation.finish(1)
    # Then every version was made, each client at least four after its last
    ledger = LedgerReader(tmp_path)
    assert verify(ledger) == []
    assert ledger.latest_version() == 12
    rows = ledger.query("SELECT client, version FROM updates WHERE version > 0 ORDER BY version")
    ledger.close()
    last: dict[str, int] = {}
    for client, version in rows:
        assert version - last.get(client, -4) >= 4
        last[client] = version


def test_an_update_that_comes_late_and_too_soon_is_rejected(tmp_path: Path) -> None:
    # Given a client that dropped out of a turn, and has had another since that counted
    federation = Federation(
        tmp_path,
        task={"clients": 2},
        participation={
            "selection": "min-separation",
            "selection_parameters": {"separation": 1},
            "assignment_deadline_s": 5.0,
        },
        aggregation={"quorum": 2, "deadline_s": 1000.0},
    )
    federation.answer(1)
    late = [federation.worker.receive_assignment(0.0) for _ in range(2)]
    federation.wait(5.0)
    federation.answer(1)
    # When its first update comes after all, within the same version
    ledger = LedgerReader(tmp_path)
    before = federation.service.coordinator
    assert before is not None
    inside = set(before.buffer.clients)
    assert len(inside) == 1
    twice = next(
        d
        for d in late
        if d is not None and d.envelope.message().client in inside  # type: ignore[union-attr]
    )
    federation.worker.submit(Envelope.of(federation.update(twice.envelope.message())))  # type: ignore[arg-type]
    federation.settle()
    # Then it counts for nothing, and the ledger says why
    assert ledger.query("SELECT reason FROM rejections") == [("too_soon",)]
    ledger.close()


def test_verify_finds_a_client_that_counts_twice_within_b_versions(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        participation={"selection": "min-separation", "selection_parameters": {"separation": 4}},
        aggregation={"quorum": 2},
    )
    federation.finish(1)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        ((first,),) = db.execute("SELECT client FROM updates WHERE version = 1 LIMIT 1").fetchall()
        db.execute("UPDATE updates SET client = ? WHERE version = 3 AND position = 0", (first,))
    ledger = LedgerReader(tmp_path)
    said = [line for line in verify(ledger) if "less than 4 apart" in line]
    ledger.close()
    assert f"client {first} counts in versions 1 and 3, less than 4 apart" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"selection": "unifrom"}, "did you mean uniform"),
        ({"selection": "min-separation"}, "selection_parameters: .*'separation'"),
        (
            {"selection": "min-separation", "selection_parameters": {"separation": 0}},
            "1 or more",
        ),
        (
            {"selection": "min-separation", "selection_parameters": {"separation": 6}},
            "needs 12 clients, and there are 10",
        ),
        ({"selection_parameters": {"b": 1}}, "uniform"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment(task={"clients": 10}, aggregation={"quorum": 2}, participation=wrong)


# ---- one of one's own

OWN = """
from fluffle import Selection

class Fewest(Selection):
    def __init__(self, broken=False):
        self.broken, self.counts = broken, {}
    def observe(self, version, counted):
        for update in counted:
            self.counts[update.client] = self.counts.get(update.client, 0) + 1
    def choose(self, moment, size):
        if self.broken:
            return ["0", "0"]
        return sorted(moment.candidates, key=lambda c: self.counts.get(c, 0))[:size]
"""


def test_one_of_ones_own_chooses_and_learns_again_after_a_restart(tmp_path: Path) -> None:
    # Given a selection in a file, which takes those who counted least
    (tmp_path / "mine.py").write_text(OWN)
    federation = Federation(
        tmp_path / "run",
        code=tmp_path,
        experiment={"versions": 8},
        participation={"selection": "mine.py:Fewest", "concurrency": 2},
        aggregation={"quorum": 2},
    )
    federation.answer(7)
    federation.die()
    federation.start()
    federation.finish(2)
    # Then all counted as often, and the file is kept with the run
    ledger = LedgerReader(tmp_path / "run")
    rows = ledger.query("SELECT client, COUNT(*) FROM updates WHERE version > 0 GROUP BY client")
    ledger.close()
    assert sorted(n for _, n in rows) == [2] * 8
    assert (tmp_path / "run" / "code" / "mine.py").exists()


def test_one_that_chooses_what_it_must_not_ends_the_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    federation = Federation(
        tmp_path / "run",
        code=tmp_path,
        participation={
            "selection": "mine.py:Fewest",
            "selection_parameters": {"broken": True},
            "concurrency": 2,
        },
    )
    with pytest.raises(UserError, match=r"Fewest chose \['0', '0'\]"):
        federation.answer(1)


def test_a_selection_without_observe_costs_a_resume_nothing() -> None:
    class Plain(Selection):
        def choose(self, moment: Moment, size: int) -> list[str]:
            return moment.candidates[:size]

    assert not Selector(experiment(), Plain()).learns
    assert Selector(experiment(), MinSeparation(2)).learns
