"""Finds the fewest faults that still break an invariant, so that a person can read the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.chaos.model.faults import Fault


def minimise(
    faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]
) -> tuple[Fault, ...]:
    """Leave out what can be left out, one by one, until nothing can: a 1-minimal schedule.

    fails: whether a schedule of these faults still breaks something.
    """
    left = tuple(faults)
    position = 0
    while position < len(left):
        fewer = left[:position] + left[position + 1 :]
        if fails(fewer):
            left, position = fewer, 0
        else:
            position += 1
    return left
