"""Turns go to clients that are there: what that is worth, and that time moves on to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.simulation.pull import simulate


def test_choosing_among_those_who_are_there_takes_the_time_that_their_turns_take(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # Given turns of a second, ten at a time, five to a version, and 50 versions: 25 seconds
    tables: dict[str, Any] = {
        "experiment": {"versions": 50},
        "aggregation": {"quorum": 5, "deadline_s": 1000.0},
    }
    second = {"delay": "constant", "delay_s": 1.0}
    diurnal = {**second, "availability": "diurnal", "available": 0.3, "period_s": 100.0}

    def seconds(name: str, devices: dict[str, Any], only_available: bool) -> float:
        participation = {"concurrency": 10, "only_available": only_available}
        given = {"task": {"clients": 40}, "participation": participation, "devices": devices}
        return simulate(tmp_path / name, monkeypatch, **given, **tables)[0]

    # When clients are there three tenths of the time
    always = seconds("always", second, True)
    old_way = seconds("old", diurnal, False)
    among_those_there = seconds("new", diurnal, True)
    # Then who holds a turn while away costs nearly all of it, and choosing who is there hardly any
    assert always == 25.0
    assert old_way > 7 * always
    assert among_those_there < 1.1 * always


def test_nobody_is_there_and_time_moves_on_to_the_next_who_is(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # Given three clients, each there for ten seconds of a hundred, and nobody for the rest
    end, events = simulate(
        tmp_path / "run",
        monkeypatch,
        task={"clients": 3},
        experiment={"versions": 4},
        participation={"concurrency": 2},
        aggregation={"quorum": 1, "deadline_s": 1000.0},
        devices={
            **{"availability": "trace", "trace": "0 20 30; 1 50 60; 2 90 100"},
            **{"delay": "constant", "delay_s": 6.0},
        },
    )
    # Then each has its turns while it is there, one after the other, and no clock stands still
    starts = [(e["at"], e["client"]) for e in events if e["event"] == "start"]
    assert starts == [(20, "0"), (26, "0"), (50, "1"), (56, "1")]
    assert end == 62.0


def test_a_client_that_rests_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    # Given two clients of whom one is wanted at a time, and who rest for ten seconds after a turn
    _, events = simulate(
        tmp_path / "run",
        monkeypatch,
        task={"clients": 2},
        experiment={"versions": 4},
        participation={"concurrency": 1, "pause_s": [10.0, 10.0]},
        aggregation={"quorum": 1, "deadline_s": 1000.0},
        devices={"delay": "constant", "delay_s": 1.0},
    )
    # Then they take turns, and the third waits for whoever has rested
    starts = [(e["at"], e["client"]) for e in events if e["event"] == "start"]
    assert [at for at, _ in starts] == [0, 1, 11, 12]
    assert starts[0][1] != starts[1][1]


def test_a_cohort_is_chosen_among_those_there_and_filled_as_others_come(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # Given a cohort of two, and one client there at the beginning
    end, events = simulate(
        tmp_path / "run",
        monkeypatch,
        task={"clients": 3},
        experiment={"versions": 1},
        participation={"mode": "cohort", "sampling_rate": 0.67},
        aggregation={"strategy": "fedavg", "deadline_s": 1000.0},
        devices={
            **{"availability": "trace", "trace": "0 0 10; 1 500 510; 2 40 50; 0 990 1000"},
            **{"delay": "constant", "delay_s": 1.0},
        },
    )
    # Then the second is the first who comes
    starts = [(e["at"], e["client"]) for e in events if e["event"] == "start"]
    assert starts == [(0, "0"), (40, "2")]
    assert end == 41.0


def test_the_same_file_gives_the_same_events(tmp_path: Path, monkeypatch: Any) -> None:
    tables: dict[str, Any] = {
        "task": {"clients": 12},
        "experiment": {"versions": 10},
        "participation": {"concurrency": 6},
        "devices": {
            **{"availability": "on_off", "on_s": 20.0, "off_s": 40.0, "dropout": 0.2},
            **{"delay": "exponential", "delay_s": 2.0},
        },
    }
    first = simulate(tmp_path / "a", monkeypatch, **{**tables, "task": {"clients": 12}})
    again = simulate(tmp_path / "b", monkeypatch, **{**tables, "task": {"clients": 12}})
    assert first == again
