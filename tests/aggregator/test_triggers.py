"""When a version is made: by updates, clients, examples, or a rule of one's own; never by less."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import replay, verify
from fluffle.schemas import Experiment, UserError
from tests.aggregator.scripted import Federation


def made(folder: Path) -> list[tuple[str, int, int, int]]:
    """Of each version what closed it, its updates, clients and examples; all is well besides."""
    ledger = LedgerReader(folder)
    assert verify(ledger) == []
    assert replay(ledger).problem is None
    rows = ledger.query(
        "SELECT v.closed_by, COUNT(*), COUNT(DISTINCT u.client), SUM(u.examples) FROM versions v"
        " JOIN updates u USING (version) WHERE version > 0 GROUP BY version ORDER BY version"
    )
    ledger.close()
    return rows


def test_clients_closes_with_so_many_different_ones_through_crashes(tmp_path: Path) -> None:
    # Given versions of three different clients each
    federation = Federation(
        tmp_path,
        experiment={"versions": 12},
        task={"clients": 4},
        participation={"concurrency": 3},
        aggregation={"quorum": 3, "trigger": "clients"},
    )
    for _ in range(6):
        federation.answer(1)
        federation.die()
        federation.start()
    # When one of three turns hangs, so that the others' clients come again and again
    federation.worker.receive_assignment(0.0)
    federation.finish(1)
    # Then each has three, and some have more updates than that
    versions = made(tmp_path)
    assert {(closed_by, clients) for closed_by, _, clients, _ in versions} == {("trigger", 3)}
    assert max(updates for _, updates, _, _ in versions) > 3


def test_examples_closes_with_so_many_and_not_before(tmp_path: Path) -> None:
    # Given turns of 10 examples and as many more as the turn's number
    federation = Federation(
        tmp_path,
        aggregation={"trigger": "examples", "trigger_parameters": {"examples": 60}},
    )
    federation.finish(1)
    # Then a version has 60 or more, and would not have without its last update
    ledger = LedgerReader(tmp_path)
    rows = ledger.query(
        "SELECT version, examples FROM updates WHERE version > 0 ORDER BY 1, position"
    )
    ledger.close()
    for version in range(1, 7):
        examples = [n for v, n in rows if v == version]
        assert sum(examples) >= 60 > sum(examples[:-1])
    assert made(tmp_path)[0][0] == "trigger"


def test_nothing_closes_with_less_than_min_updates(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        aggregation={
            **{"trigger": "examples", "trigger_parameters": {"examples": 1}},
            "min_updates": 3,
        },
    )
    federation.finish(1)
    assert {updates for _, updates, _, _ in made(tmp_path)} == {3}


def test_the_deadline_closes_what_the_trigger_does_not(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        experiment={"versions": 1},
        aggregation={"trigger": "clients", "quorum": 3, "deadline_s": 10.0},
    )
    federation.answer(1)
    federation.answer(2)
    federation.wait(10.0)
    assert made(tmp_path)[0][:2] == ("deadline", 2)


def test_one_of_ones_own_closes_and_its_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fluffle import Trigger\n"
        "class Odd(Trigger):\n"
        "    def due(self, held):\n"
        "        return held.updates == (3 if '0' in held.clients else 1)\n"
        "class Broken(Trigger):\n"
        "    def due(self, held):\n"
        "        return held.nothing\n"
    )
    federation = Federation(
        tmp_path / "run", code=tmp_path, aggregation={"trigger": "mine.py:Odd", "deadline_s": 5.0}
    )
    federation.answer(1)
    federation.answer(1)
    federation.finish(1)
    assert {closed for closed, *_ in made(tmp_path / "run")} == {"trigger"}
    with pytest.raises(UserError, match=r"the trigger failed: mine.py, line 7"):
        Federation(
            tmp_path / "other", code=tmp_path, aggregation={"trigger": "mine.py:Broken"}
        ).finish(1)


def test_verify_finds_a_version_that_its_trigger_would_not_have_closed(tmp_path: Path) -> None:
    Federation(tmp_path, aggregation={"quorum": 3, "trigger": "clients"}).finish(1)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE updates SET client = (SELECT MIN(client) FROM updates WHERE version = 2)"
                   " WHERE version = 2")  # fmt: skip
    ledger = LedgerReader(tmp_path)
    assert any("updates of 1 clients" in line for line in verify(ledger))
    ledger.close()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"aggregation": {"trigger": "client"}}, "did you mean clients"),
        ({"aggregation": {"trigger": "examples"}}, "trigger_parameters: .*'examples'"),
        (
            {"aggregation": {"trigger": "clients", "trigger_parameters": {"examples": 3}}},
            "trigger_parameters: clients takes no arguments",
        ),
        (
            {
                "aggregation": {
                    **{"trigger": "examples", "trigger_parameters": {"examples": 3}},
                    "quorum": 3,
                }
            },
            "quorum says nothing",
        ),
        (
            {
                "task": {"clients": 0},
                "participation": {"residents": ["a", "b"]},
                "aggregation": {
                    **{"trigger": "examples", "trigger_parameters": {"examples": 3}},
                    "on_deadline": "extend",
                },
            },
            "sites count once",
        ),
        (
            {"participation": {"mode": "cohort"}, "aggregation": {"trigger": "clients"}},
            "goes with participation.mode = 'concurrent'",
        ),
        ({"aggregation": {"strategy": "fedasync", "trigger": "clients"}}, "every update"),
        (
            {
                "aggregation": {"trigger": "examples", "trigger_parameters": {"examples": 3}},
                "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
            },
            "whatever the data are",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    tables: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Experiment.model_validate({"task": {"clients": 10}, **tables})
