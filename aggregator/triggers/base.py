"""A trigger: whether the open buffer closes now. It is asked after each update that is folded.

Pure: a function of what the buffer holds, which a partial checkpoint brings back after a crash. The
deadline is not its business, and with less than ``min_updates`` nothing closes whatever it says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluffle.schemas import Experiment


@dataclass(frozen=True, slots=True)
class Held:
    """What the open buffer holds."""

    #: ``aggregation.quorum``, or its default (K).
    quorum: int
    updates: int
    #: Of all updates together.
    examples: int
    #: Who has contributed, each once.
    clients: Collection[str]


class Trigger:
    """When a version closes.

    At half of the quorum, where they bring enough examples, as a toy:

    >>> class HalfIsEnough(Trigger):
    ...     def __init__(self, examples=100):
    ...         self.examples = examples
    ...     def due(self, held):
    ...         half = held.updates * 2 >= held.quorum and held.examples >= self.examples
    ...         return half or held.updates >= held.quorum
    >>> HalfIsEnough().due(Held(quorum=10, updates=5, examples=120, clients={"0", "1"}))
    True
    """

    def due(self, held: Held) -> bool:
        """Whether the buffer closes. Changes nothing."""
        raise NotImplementedError

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where the trigger does not go with the rest of the experiment."""
