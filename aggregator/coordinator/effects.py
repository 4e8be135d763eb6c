"""Effects: requests of the coordinator, which the leader executes in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from fluffle.aggregator.strategies.base import State
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    GlobalModel,
    UnmaskRequest,
)


@dataclass(frozen=True, slots=True)
class Fold:
    """What the ledger keeps of a folded update; its tensors are in the buffer."""

    update_id: str
    client: str
    turn: int
    base_version: int
    staleness: int
    examples: int
    worker: str
    metrics: dict[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    slot_s: float = 0.0
    received_bytes: int = 0
    #: How long it is, by group of tensors (``norms_of``).
    norms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, update: ClientUpdate, staleness: int, norms: Mapping[str, float] | None = None
    ) -> Self:
        """What is kept of this update; most fields have the message's names."""
        values: dict[str, Any] = {"staleness": staleness, "norms": dict(norms or {})}
        values |= {f.name: getattr(update, f.name) for f in fields(cls) if f.name not in values}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Publish:
    """Send this model to everybody."""

    model: GlobalModel


@dataclass(frozen=True, slots=True)
class Assign:
    """Put these turns into the work queue."""

    assignments: Sequence[Assignment]
    expires_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep this update's delivery until a record of it is durable."""

    update_id: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Counted before: ack it."""

    update_id: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Of no use: record why, set a copy aside, ack."""

    update_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class MakeVersion:
    """Make this version durable together with what it was made of, then ack that."""

    version: int
    state: State
    closed_by: str
    #: Folded since the last record of any kind.
    folds: Sequence[Fold]
    #: The next turn to be issued.
    turn: int
    #: Versions whose evaluations the strategy has been told of since the last one.
    heard: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SaveBuffer:
    """A partial checkpoint: make the open buffer durable, then ack what is in it."""

    state: State
    folds: Sequence[Fold]
    #: Updates that wait for their place in client order (deterministic cohorts only).
    waiting: Sequence[ClientUpdate]
    turn: int


@dataclass(frozen=True, slots=True)
class Unmask:
    """Ask the helper for the masks of a closed buffer; take nothing in until it has answered."""

    request: UnmaskRequest


@dataclass(frozen=True, slots=True)
class RecordFailure:
    """A training that failed; ack it once recorded."""

    failure: ClientFailed
    #: Whether its turn or attempt is open; anybody may send any number of others.
    asked: bool


@dataclass(frozen=True, slots=True)
class RecordEvaluation:
    """An evaluation; ack it once recorded."""

    evaluation: Evaluation
    #: Whether the strategy will be told of it, with the next version.
    heard: bool = False


@dataclass(frozen=True, slots=True)
class RecordDropouts:
    """Assignments that brought nothing within their deadline."""

    assignments: Sequence[Assignment]


@dataclass(frozen=True, slots=True)
class CallAt:
    """Call ``on_timer`` at this time, unless something else comes first."""

    time: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over. ``unused``: not yet recorded folds of a buffer that never closed."""

    status: str
    detail: str
    unused: Sequence[Fold]


Effect = (
    Publish
    | Assign
    | Hold
    | Duplicate
    | Reject
    | MakeVersion
    | SaveBuffer
    | Unmask
    | RecordFailure
    | RecordEvaluation
    | RecordDropouts
    | CallAt
    | Finish
)


@dataclass(slots=True)
class Checkpoint:
    """Where a run stands, as the ledger knows it."""

    version: int = 0
    #: None before version 0 exists.
    state: State | None = None
    #: The next turn to be issued.
    turn: int = 0
    #: Updates counted in versions so far.
    updates: int = 0
    #: Folds and waiting updates of the open buffer that a partial checkpoint holds.
    buffered: list[Fold] = field(default_factory=list)
    waiting: list[ClientUpdate] = field(default_factory=list)
    #: Where clients keep state, what each one goes on from.
    states: dict[str, str] = field(default_factory=dict)
    #: Of each resident client, the newest version that a folded update of its was trained from.
    residents: dict[str, int] = field(default_factory=dict)
    #: The attempt to ask residents for: above those at this version that were used up for nothing.
    attempt: int = 0
    #: The secret that cohorts are sampled by, where they are.
    sampling_key: bytes | None = None
    #: Seconds that the run has taken before this start.
    elapsed_s: float = 0.0
    #: What each of the last versions was made of, the oldest first.
    recent: list[list[Fold]] = field(default_factory=list)
    #: Every version with what it was made of, in order, where the selection learns from it; can be
    #: read once.
    history: Iterable[tuple[int, list[Fold]]] = ()
    #: Evaluations that the strategy has not been told of yet, by version, and the newest version
    #: whose evaluation is told or to be told.
    unheard: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    heard: int = -1
    #: Versions that have been evaluated, in order, with their metrics.
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
