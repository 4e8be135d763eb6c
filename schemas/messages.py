"""The messages of the protocol (docs/architecture.md), validated on both sides of the wire."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, SkipValidation

from fluffle.schemas.errors import DecodeError
from fluffle.schemas.experiment import Plan
from fluffle.schemas.masking import SEAL_BYTES, Member, set_digest
from fluffle.schemas.tensors import Tensors

Count = Annotated[int, Field(ge=0, le=2**53)]
#: Bounds that nothing honest comes near, within which sums of millions still fit into 64 bits.
Bytes = Annotated[int, Field(ge=0, le=2**50)]
Examples = Annotated[int, Field(ge=0, le=2**40)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=1e9)]
Slots = Annotated[int, Field(ge=0, le=100_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")]
Text = Annotated[str, Field(max_length=2000)]
#: A message's maps have no more entries.
MOST_METRICS = 64
#: A metric is named in a terminal, a table's head and a drawing: nothing that any of these takes
#: for its own, and no beginning that a spreadsheet takes for a formula.
_METRIC_NAME = re.compile(r"\w[\w .,:;@%/()+*^~#-]{0,63}")


def _checked_name(name: str) -> str:
    # Not pydantic's own pattern, whose letters are others than Python's.
    if not _METRIC_NAME.fullmatch(name):
        raise ValueError("a metric's name is up to 64 letters, digits, blanks and .,:;@%/()+*^~#-")
    return name


MetricName = Annotated[str, AfterValidator(_checked_name)]
#: Beyond this a metric tells of nothing but a training that diverged.
MOST_METRIC = 1e30
Metric = Annotated[FiniteFloat, Field(ge=-MOST_METRIC, le=MOST_METRIC)]
Metrics = Annotated[dict[MetricName, Metric], Field(max_length=MOST_METRICS)]
#: Names what a client kept after a training; empty before its first.
StateName = Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]
Payload = Annotated[Tensors, SkipValidation]

#: The turn that asks for version 0: training starts with turn 1.
INITIALISE = 0


#: Fields that RabbitMQ's UI shows as headers.
_SHOWN = ("version", "attempt", "client", "turn", "base_version", "worker", "kind")


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True
    )


class Run(_Strict):
    """Which run, since when, under which leader: what tells old messages from new ones.

    ``run_started`` is Unix time in milliseconds, raised where needed so that a later run on the
    same broker always has the larger one. ``epoch`` grows with every start of an aggregator.
    """

    run_id: Name
    run_started: Count
    epoch: Count


class Message(_Strict):
    """One message; ``type`` names it on the wire and in RabbitMQ's UI."""

    type: ClassVar[str]
    run: Run

    @property
    def message_id(self) -> str:
        """What RabbitMQ's UI shows as the message's id."""
        return f"{self.run.run_id}:{self.type}"

    @property
    def payload(self) -> Tensors | None:
        """The message's tensors, where it is of a kind that has some."""
        tensors: Tensors | None = self.__dict__.get("tensors")
        return tensors

    def headers(self) -> dict[str, int | str]:
        """AMQP headers: readable without decoding a body."""
        run, fields = self.run, self.__dict__
        shown = {k: fields[k] for k in _SHOWN if fields.get(k) is not None}
        return {
            **{"run_id": run.run_id, "run_started": run.run_started, "epoch": run.epoch},
            **shown,
        }


class GlobalModel(Message):
    """The weights at a version, with the plan for training them."""

    type: ClassVar[str] = "global-model"

    version: Count
    attempt: Count = 0
    final: bool = False
    #: Updates counted in this and all earlier versions.
    updates: Count = 0
    plan: Plan
    tensors: Payload

    @property
    def message_id(self) -> str:
        return f"{self.run.run_id}:v{self.version}:{self.run.epoch}.{self.attempt}"

    @property
    def asks_for_weights(self) -> bool:
        """Without tensors there is only a plan yet: the evaluator shall build version 0."""
        return not self.tensors


class Assignment(Message):
    """Client c, it is your turn. ``initialise`` asks for the seeded weights of version 0."""

    type: ClassVar[str] = "assignment"

    kind: Literal["train", "initialise"] = "train"
    assignment_id: Name
    client: Name
    turn: Count
    version: Count
    #: In cohort mode a turn is for ``version`` and no other.
    exact_version: bool = False
    #: Where clients keep state: what this one goes on from.
    after: StateName | None = None
    #: Only ``initialise`` carries it: there is no model yet to bring it.
    plan: Plan | None = None

    @classmethod
    def to_initialise(cls, run: Run, plan: Plan) -> Self:
        """The turn that asks for version 0, however often it is asked."""
        return cls(
            run=run,
            kind="initialise",
            assignment_id=assignment_id(run.run_id, INITIALISE, "0"),
            client="0",
            turn=INITIALISE,
            version=0,
            plan=plan,
        )

    @property
    def message_id(self) -> str:
        return self.assignment_id


class _FromClient(Message):
    """What answers an assignment. ``update_id`` is the assignment's id.

    A resident client has no assignments: its ``update_id`` is ``resident_update_id``, and its
    ``turn`` is the attempt that it answers, counted from 1.
    """

    update_id: Name
    client: Name
    turn: Count
    base_version: Count
    worker: Name

    @property
    def message_id(self) -> str:
        return self.update_id


class ClientUpdate(_FromClient):
    """What a client sends after local training.

    ``trainable`` tensors hold local − base where ``sends`` is "delta", the local values where it
    is "weights"; ``non_trainable`` ones always hold values. "initial" answers ``initialise``.
    """

    type: ClassVar[str] = "client-update"

    sends: Literal["delta", "weights", "initial"]
    examples: Examples
    metrics: Metrics = Field(default_factory=dict)
    #: Time spent training, and the slot's time since its last turn ended (waiting included).
    train_s: Seconds = 0.0
    slot_s: Seconds = 0.0
    #: Bytes of global models that this worker has received since its last update.
    received_bytes: Bytes = 0
    #: Where clients keep state: what this one went on from.
    after: StateName | None = None
    tensors: Payload


class ClientFailed(_FromClient):
    """A training that failed says so: it must not cost a whole deadline."""

    type: ClassVar[str] = "client-failed"

    reason: Text


class Evaluation(Message):
    """The metrics of one version on held-out examples, those that are defined on them."""

    type: ClassVar[str] = "evaluation"

    version: Count
    worker: Name
    metrics: Metrics
    examples: Examples
    seconds: Seconds = 0.0
    #: The loss is no number: nothing can be learnt from this version any more.
    diverged: Literal[True] | None = None

    @property
    def message_id(self) -> str:
        return f"{self.run.run_id}:evaluation:v{self.version}:{self.worker}"


class Event(Message):
    """Something to show a person. May be lost: no decision is made from it."""

    type: ClassVar[str] = "event"

    kind: Literal["joined", "training", "left"]
    worker: Name
    client: Name | None = None
    slots: Slots | None = None
    peak_rss_mb: FiniteFloat | None = None


class UnmaskRequest(Message):
    """The aggregator asks the helper for the weighted sum of the masks of these updates.

    ``tensors``: ``members/names`` (UTF-8, a line of update id and client for each),
    ``members/weights`` (int64, [k]), ``members/seals`` (uint8, [k, SEAL_BYTES]).
    """

    type: ClassVar[str] = "unmask-request"

    #: The version that the sum is for.
    version: Count
    words: Annotated[int, Field(ge=0, le=2**28)]
    tensors: Payload

    @classmethod
    def of(cls, run: Run, version: int, words: int, members: Sequence[Member]) -> Self:
        """The request for these members."""
        lines = "\n".join(f"{member.update_id} {member.client}" for member in members)
        seals = b"".join(member.seal for member in members)
        return cls(
            run=run,
            version=version,
            words=words,
            tensors={
                "members/names": np.frombuffer(lines.encode(), np.uint8),
                "members/weights": np.array([member.weight for member in members], np.int64),
                "members/seals": np.frombuffer(seals, np.uint8).reshape(-1, SEAL_BYTES),
            },
        )

    def members(self) -> list[Member]:
        """Whose masks are asked for. Raises: DecodeError."""
        try:
            names = self.tensors["members/names"].tobytes().decode().split("\n")
            weights, seals = self.tensors["members/weights"], self.tensors["members/seals"]
            if weights.dtype != np.int64 or seals.dtype != np.uint8:
                raise DecodeError("weights or seals of another dtype")
            if weights.shape != (len(names),) or seals.shape != (len(names), SEAL_BYTES):
                raise DecodeError("as many weights and seals as names are needed")
            pairs = [_member_name(line) for line in names]
        except (KeyError, ValueError) as error:
            raise DecodeError(f"no set of updates ({type(error).__name__})") from None
        return [
            Member(update_id, client, int(weight), sealed.tobytes())
            for (update_id, client), weight, sealed in zip(pairs, weights, seals, strict=True)
        ]

    @property
    def digest(self) -> str:
        """What the set is known by, whoever leads. Raises: DecodeError."""
        return set_digest(self.run.run_id, self.words, self.members())

    @property
    def message_id(self) -> str:
        return f"{self.run.run_id}:unmask:v{self.version}"


class Masks(Message):
    """The helper's answer: ``masks/words`` (uint32, [words]), or why there are none."""

    type: ClassVar[str] = "masks"

    version: Count
    #: The digest of the request.
    request: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    refused: Text | None = None
    tensors: Payload

    @property
    def message_id(self) -> str:
        return f"{self.run.run_id}:masks:v{self.version}"


def _member_name(line: str) -> tuple[str, str]:
    update_id, client = line.split(" ")
    for part in (update_id, client):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}", part):
            raise ValueError(part)
    return update_id, client


def metric_name(text: str) -> str:
    """What a metric of this name is sent as."""
    return re.sub(r"^\W|[^\w .,:;@%/()+*^~#-]", "_", text)[:64] or "_"


def assignment_id(run_id: str, turn: int, client: str) -> str:
    """The id of a turn, and of the update that answers it."""
    return f"{run_id}:{turn}:{client}"


def state_name(after: str, turn: int, base_version: int) -> str:
    """What a client keeps after this training, which had gone on from ``after``.

    Given the run and the client, a training is a function of these three, and so is its state.
    """
    return hashlib.sha256(f"{after}:{turn}:{base_version}".encode()).hexdigest()[:16]


def resident_update_id(run_id: str, client: str, base_version: int, attempt: int) -> str:
    """The id of what a resident client sends: it trains once for each version and attempt."""
    return f"{run_id}:{client}:v{base_version}.{attempt}"


#: What goes through the updates queue.
FromWorker = ClientUpdate | ClientFailed | Evaluation

TYPES: Mapping[str, type[Message]] = {
    cls.type: cls
    for cls in (
        *(GlobalModel, Assignment, ClientUpdate, ClientFailed, Evaluation, Event),
        *(UnmaskRequest, Masks),
    )
}


def order(headers: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Sorts models by newness: (run_started, epoch, version, attempt) of the AMQP headers.

    Raises: KeyError, TypeError where the headers are not ours.
    """
    return (
        index(headers["run_started"]),
        index(headers["epoch"]),
        index(headers["version"]),
        index(headers["attempt"]),
    )
