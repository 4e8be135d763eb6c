"""The checker finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.processes.balance import Balance

GOOD = Balance(
    sent=Counter(a=1, b=1, c=2, d=1, e=1, f=1),
    confirmed=Counter(a=1, b=1, c=2, d=1, e=1),
    ledger={"counted": {"a", "c", "f"}, "unused": {"b"}},
    rejected={"c": "too_stale", "d": "late"},
    dead=set(),
    queued={"e"},
)


def test_a_balance_that_holds() -> None:
    # c: trained twice, one copy counted, the other too stale; f: its worker died before its confirm
    assert GOOD.problems(one_base=False) == []
    # A cohort trains it from one version, so one of them must be wrong
    assert GOOD.problems(one_base=True) == [
        "update c was sent 2 times and is ['counted', 'rejected']"
    ]
    assert "5 confirmed (1 of them once more) and 1 sent that their worker" in str(GOOD)


def test_a_copy_that_was_dead_lettered_beside_one_that_was_counted() -> None:
    both = replace(GOOD, rejected={"d": "late"}, dead={"c"})
    assert both.problems(one_base=True) == both.problems(one_base=False) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (replace(GOOD, queued=set()), "update e was confirmed and is nowhere"),
        (replace(GOOD, dead={"x"}), "update x is somewhere and nobody sent it"),
        (
            replace(GOOD, dead={"a"}),
            "update a was sent 1 times and is ['counted', 'dead-lettered']",
        ),
        (
            replace(GOOD, rejected={"b": "late", "c": "too_stale", "d": "late"}),
            "update b was sent 1 times and is ['unused', 'rejected",
        ),
    ],
)
def test_what_does_not_hold_is_named(bad: Balance, says: str) -> None:
    (line,) = bad.problems(one_base=False)
    assert line.startswith(says)
