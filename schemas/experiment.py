"""The experiment file: every key, its default and its bounds. One TOML table per class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from fluffle.schemas.aggregation import STORED, Aggregation, strategies
from fluffle.schemas.algorithms import (
    Asks,
    Scalar,
    check_algorithm,
    check_fedrep,
    refuse_unknown,
    state_of,
)
from fluffle.schemas.decisions import check_decisions, check_names
from fluffle.schemas.device_tables import HardwareTable, Trace
from fluffle.schemas.extensions import PARTITION, UPDATE_STEP
from fluffle.schemas.privacy import PrivacyTable, check_privacy
from fluffle.schemas.schedules import Schedule
from fluffle.schemas.secure import SecurePlan, SecureTable, check_secure, secure_plan
from fluffle.schemas.steps import KINDS, Steps, remembers
from fluffle.schemas.table import (
    Fraction,
    NonNegative,
    NotWith,
    OnlyWith,
    Parameters,
    Positive,
    Range,
    Table,
    idle_keys,
    refuse_idle_keys,
)

#: A resident client, which is also its user's name on the broker. No dots: the rights on
#: ``site.…`` that one has must not fit the queues of another.
Resident = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class ExperimentTable(Table):
    """When to stop, and the seed of everything random."""

    #: The run folder, its curves and its logs go by this name: letters, digits, dots, _ and -, at
    #: most 64.
    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    #: Of everything random: who trains when, on what, from which weights.
    seed: int = Field(42, ge=0, lt=2**32)
    #: Stop after this many versions.
    versions: int = Field(100, ge=1, le=2**53)
    #: Stop when an evaluation reaches this accuracy, on validation examples (task.validation).
    target_accuracy: Fraction | None = None
    #: Stop when this many evaluations in a row are no better than the best before them, by
    #: accuracy, or by loss where the task has no accuracy.
    patience: int | None = Field(None, ge=1)
    #: Better is what is ahead of the best by more than this.
    min_delta: NonNegative = 0.0
    #: Stop after this time.
    max_minutes: Positive | None = None


def _without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    """What was written before there were these keys, where they are not given."""
    return {k: v for k, v in document.items() if k not in keys or v is not None}


#: The share of the training examples that decisions are made on, where there are any to be made.
VALIDATION = 0.1

#: Marks a setting of synthetic-lr.
_SYNTHETIC = OnlyWith("name", ("synthetic-lr",))


class TaskTable(Table):
    """What is learned, and by how many clients."""

    #: One that comes with Fluffle, or "FILE.py:Class": a file beside the experiment file.
    name: str = "mnist-mlp"
    #: Pooled clients, "0", "1", …, whom any worker trains. 0: resident clients alone.
    clients: int = Field(10, ge=0, le=1_000_000)
    #: synthetic-lr: how much the devices' models differ (alpha); Li et al. 2020, arXiv 1812.06127,
    #: section 5.1. Default: 1.
    synthetic_alpha: Annotated[NonNegative | None, _SYNTHETIC] = None
    #: synthetic-lr: how much the devices' inputs differ (beta). Default: 1.
    synthetic_beta: Annotated[NonNegative | None, _SYNTHETIC] = None
    #: synthetic-lr: all devices have the same model and inputs instead (the paper's IID data).
    synthetic_iid: Annotated[bool | None, _SYNTHETIC] = None
    #: The share of the training examples that no client trains on, for decisions: target_accuracy,
    #: patience and best.keras go by them, and test examples are reported. 0: decisions are made on
    #: the test examples. Default: 0.1 with target_accuracy or patience, else 0.
    validation: Annotated[float, Field(ge=0, le=0.5)] | None = None
    #: What a task of your own is made with: its keyword arguments.
    parameters: Parameters | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without the newer keys has the bytes that it had before there were any."""
        return _without(dump(self), "parameters", "validation")


#: Partitions that come with Fluffle.
PARTITIONS = (
    *("contiguous", "iid", "shards", "dirichlet", "dirichlet-by-class"),
    *("labels", "quantity", "power-law", "similarity", "natural"),
)
_DIRICHLET = ("dirichlet", "dirichlet-by-class", "quantity")
#: Drawn again until everybody has enough.
_DRAWN_AGAIN = ("dirichlet-by-class", "quantity")


class PartitionTable(Table):
    """Which examples each client holds."""

    #: contiguous stretches in the order of the data; iid, at random; shards of a label; dirichlet
    #: (client by client, of equal sizes), dirichlet-by-class (class by class, of unequal sizes),
    #: labels (few classes each), quantity (unequal sizes alone), power-law and similarity, skewed
    #: on purpose; natural, by the data's own owners. One of your own: FILE.py:Class beside the
    #: experiment file, or the name that an installed package gave it.
    kind: str = Field("contiguous", max_length=256)
    #: shards: how many label-sorted shards a client gets (McMahan et al. 2017: 2).
    shards_per_client: Annotated[int, OnlyWith("kind", ("shards",))] = Field(2, ge=1, le=2**31)
    #: Smaller is more skewed. dirichlet: the sum of the concentrations of all classes in a client's
    #: mixture (Hsu et al. 2019, arXiv 1909.06335). dirichlet-by-class: the concentration of each
    #: client in a class's shares (Li et al. 2022, NIID-Bench, arXiv 2102.02079, its beta).
    #: quantity: that of each client in the sizes.
    alpha: Annotated[Positive, OnlyWith("kind", _DIRICHLET)] = 0.5
    #: dirichlet-by-class, quantity: shares are drawn again until every client has this many.
    #: Default: 10.
    min_examples: Annotated[
        Annotated[int, Field(ge=1, le=2**31)] | None, OnlyWith("kind", _DRAWN_AGAIN)
    ] = None
    #: labels: how many classes a client has (NIID-Bench's #C). Default: 2.
    labels_per_client: Annotated[
        Annotated[int, Field(ge=1, le=2**31)] | None, OnlyWith("kind", ("labels",))
    ] = None
    #: power-law: client k's share of the examples is proportional to (k + 1)^-exponent. Default: 1.
    exponent: Annotated[NonNegative | None, OnlyWith("kind", ("power-law",))] = None
    #: similarity: this many percent of each client's examples are iid, the rest is sorted by label
    #: (Karimireddy et al. 2020, arXiv 1910.06378). Default: 10.
    similarity: Annotated[
        Annotated[float, Field(ge=0, le=100)] | None, OnlyWith("kind", ("similarity",))
    ] = None
    #: Keep at most this many examples of each client.
    examples_per_client: int | None = Field(None, ge=1, le=2**31)
    #: What a partition of your own is made with: its keyword arguments.
    parameters: Parameters | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without the newer keys has the bytes that it had before there were any."""
        return _without(dump(self), "parameters", "min_examples", "labels_per_client")

    @model_validator(mode="after")
    def _parameters_are_for_others(self) -> Self:
        if self.parameters is not None and self.kind in PARTITIONS:
            raise ValueError(
                f"[partition.parameters] are for a partition of your own, and {self.kind} is none"
            )
        return self


class TrainingTable(Table):
    """Local training of one client."""

    #: What trains: tensorflow, one client after the other in each thread; jax, several in one step
    #: (``lanes``). Default: tensorflow.
    engine: Literal["tensorflow", "jax"] | None = None
    #: jax: how many clients of the same model are trained together at most, under the virtual
    #: clock. Default: 1.
    lanes: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, OnlyWith("engine", ("jax",))] = (
        None
    )
    #: How often a client goes over its examples in one turn.
    epochs: int = Field(1, ge=1, le=2**31 - 1)
    #: Steps of the optimizer in one turn, the same for every client, in place of epochs: examples
    #: are gone over as often as that takes, and the last time perhaps not to the end.
    steps: int | None = Field(None, ge=1, le=2**31 - 1)
    #: Examples in a step of the optimizer; the last batch of an epoch may be shorter.
    batch_size: int = Field(32, ge=1, le=2**31)
    #: sgd, adam (compiled into the training loop) or the name of any other Keras optimizer.
    optimizer: str = "adam"
    #: Of the clients' optimizer.
    learning_rate: Positive = 0.001
    #: sgd only.
    momentum: Annotated[float, OnlyWith("optimizer", ("sgd",))] = Field(0.0, ge=0, lt=1)
    #: sgd only: Nesterov's momentum.
    nesterov: Annotated[bool, OnlyWith("optimizer", ("sgd",))] = False
    #: Whatever else the Keras optimizer of this name takes: beta_1, weight_decay, clipnorm,
    #: global_clipnorm, use_ema, gradient_accumulation_steps, …; and no_decay, parts of the names of
    #: weights that weight_decay leaves alone.
    optimizer_parameters: dict[str, Scalar] | None = None
    #: Whether the optimizer starts anew in each turn (reset), or goes on from the client's last
    #: (keep): its state is then kept per client, exact through crashes. Default: reset.
    optimizer_state: Literal["reset", "keep"] | None = None
    #: The learning rate over the local steps of a turn: kind = cosine, step or constant, warmup, ….
    local_schedule: Schedule | None = None
    #: The learning rate over versions: that of the version that is trained.
    version_schedule: Schedule | None = None
    #: FedProx (arXiv 1812.06127): mu/2 |w - w_base|^2 is added to the local loss.
    proximal_mu: NonNegative | None = None
    #: What a client does besides: fedprox, moon, ditto, fedrep, or FILE.py:Class beside the
    #: experiment file. Default: what the strategy asks for, else plain local training.
    algorithm: str | None = None
    #: What an algorithm is made with.
    algorithm_parameters: dict[str, Scalar] | None = None
    #: An algorithm from a file, or an ArrayTask: clients keep what it returns for their next turn.
    keep_state: bool | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without the newer keys has the bytes that it had before there were any."""
        return _without(dump(self), "steps")


#: What ``devices.preset`` stands for.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "article": {"delay": "exponential", "delay_s": 2.0, "delay_of": "turn", "dropout": 0.1},
    "phones": {
        **{"availability": "diurnal", "available": 0.3, "dropout": 0.1, "stragglers": 0.2},
        **{"delay": "log_normal", "delay_s": 60.0, "delay_shape": 1.0, "delay_of": "client"},
        **{"latency_s": 0.1, "download_bytes_per_s": 2.5e6, "upload_bytes_per_s": 6e5},
    },
}


class DevicesTable(Table):
    """What clients' devices are like: four independent axes, each optional, all seeded."""

    #: Settings under a name, which the keys below override: article (exponential delays of 2 s on
    #: average, one turn in ten lost), phones (slow, diurnal, unreliable).
    preset: Literal["article", "phones"] | None = None

    #: availability: when a client can start. diurnal: a sine over ``period_s``, its phase the
    #: client's own; on_off: exponential times on and off; trace: rows client,start,end of a CSV.
    availability: Literal["always", "diurnal", "on_off", "trace"] | None = None
    #: diurnal: the length of a day. Default: 86400.
    period_s: Annotated[Positive | None, OnlyWith("availability", ("diurnal",))] = None
    #: diurnal: the share of clients that are available on average. Default: 0.5.
    available: Annotated[Fraction | None, OnlyWith("availability", ("diurnal",))] = None
    #: on_off: how long a client is there, on average. Default: 600.
    on_s: Annotated[Positive | None, OnlyWith("availability", ("on_off",))] = None
    #: on_off: how long it is away, on average. Default: 600.
    off_s: Annotated[Positive | None, OnlyWith("availability", ("on_off",))] = None
    #: trace: the path of the CSV, from the experiment file on.
    trace: Annotated[Trace | None, OnlyWith("availability", ("trace",))] = None

    #: connectivity: the probability that a turn brings nothing.
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    #: Where a turn that brings nothing is lost; any: in one of the three, at random. Default: any.
    dropout_at: Annotated[
        Literal["before_training", "after_training", "upload", "any"] | None, OnlyWith("dropout")
    ] = None

    #: completeness: the share of turns that do only 1 to ``epochs`` epochs, uniformly (FedProx).
    stragglers: Annotated[float, Field(ge=0, le=1)] | None = None

    #: responsiveness: a delay in seconds with this distribution and mean, for each client once
    #: or for each turn anew. half_normal and log_normal are those of FedBuff's and FLSim's kind.
    delay: (
        Literal["constant", "uniform", "exponential", "half_normal", "log_normal", "pareto"] | None
    ) = None
    #: The mean of the delay, in seconds.
    delay_s: Annotated[NonNegative | None, OnlyWith("delay")] = None
    #: log_normal: sigma; pareto: the exponent (above 1).
    delay_shape: Annotated[Positive | None, OnlyWith("delay", ("log_normal", "pareto"))] = None
    #: Whether a delay is drawn once for each client or anew for each turn. Default: turn.
    delay_of: Annotated[Literal["client", "turn"] | None, OnlyWith("delay")] = None
    #: responsiveness by hardware: what a device takes for one example, and its network.
    seconds_per_example: Annotated[NonNegative | None, NotWith("hardware")] = None
    #: What a message takes besides its bytes, each way.
    latency_s: Annotated[NonNegative | None, NotWith("hardware")] = None
    #: The network of a device towards it: how fast a model comes.
    download_bytes_per_s: Annotated[Positive | None, NotWith("hardware")] = None
    #: And away from it: how fast an update goes.
    upload_bytes_per_s: Annotated[Positive | None, NotWith("hardware")] = None
    #: Hostile clients, for experiments on robust strategies: this share trains, and sends its delta
    #: with the sign flipped, times byzantine_scale (default 1).
    byzantine: Annotated[float, Field(ge=0, le=1)] | None = None
    #: What a hostile client's flipped delta is multiplied by. Default: 1.
    byzantine_scale: Annotated[Positive | None, OnlyWith("byzantine")] = None
    #: The path of a CSV with a row for each device: seconds_per_example, latency_s,
    #: download_bytes_per_s, upload_bytes_per_s; clients are dealt the rows at random.
    hardware: HardwareTable | None = None

    @model_validator(mode="after")
    def _has_a_mean(self, info: ValidationInfo) -> Self:
        shape = self.effective("delay_shape")
        pareto = info.context != STORED and self.effective("delay") == "pareto"
        if pareto and shape is not None and shape <= 1:
            raise ValueError(
                f"devices.delay_shape = {shape:g}: a pareto delay has a mean where its exponent is "
                "above 1"
            )
        return self

    @model_validator(mode="after")
    def _has_its_trace(self) -> Self:
        if self.availability == "trace" and self.trace is None:
            raise ValueError(
                "devices.availability = 'trace' needs devices.trace, the path of a CSV"
            )
        return self

    def effective(self, key: str) -> Any:
        """The value that holds for a key: its own, else the preset's."""
        given = getattr(self, key)
        preset = PRESETS[self.preset] if self.preset else {}
        return preset.get(key) if given is None else given

    @property
    def with_preset(self) -> DevicesTable:
        """The table with the preset's settings, where no key of its own overrides them."""
        preset = PRESETS[self.preset] if self.preset else {}
        return DevicesTable.model_validate({**preset, **self.model_dump(exclude_none=True)})


#: Where an experiment says nothing, no turn may take longer.
LONGEST_TURN_S = 600.0


class ParticipationTable(Table):
    """Who trains when."""

    #: concurrent: so many clients are always in flight (asynchronous). cohort: clients are chosen
    #: together for each version (synchronous rounds).
    mode: Literal["concurrent", "cohort"] = "concurrent"
    #: concurrent: how many clients are in flight at once (M). Default: all.
    concurrency: Annotated[
        Annotated[int, Field(ge=1)] | None, OnlyWith("mode", ("concurrent",))
    ] = None
    #: cohort: the share of clients chosen for each version.
    sampling_rate: Annotated[Fraction, OnlyWith("mode", ("cohort",))] = 1.0
    #: cohort: choose this many times more clients than the quorum needs.
    over_selection: Annotated[float, OnlyWith("mode", ("cohort",))] = Field(
        1.0, ge=1, allow_inf_nan=False
    )
    #: Who is chosen: uniform; power-of-choice (large losses); oort (much to learn from, and fast);
    #: min-separation (nobody within b versions of its last); or FILE.py:Class beside the experiment
    #: file, or what an installed package offers. See docs/selection.md.
    selection: str = Field("uniform", max_length=256)
    #: What a selection is made with: its keyword arguments.
    selection_parameters: Parameters | None = None
    #: Choose among the clients that are there: available, and not resting or busy with an older
    #: turn. That is known under the virtual clock; else turns go to any client. false: always to
    #: any, and who is away holds its turn until it is back.
    only_available: bool = True
    #: Stop trainings whose base has become too old to count: beyond aggregation.max_staleness (with
    #: ringmaster R - 1, which makes it Algorithm 5), in a cohort when its version is over. The turn
    #: goes on at once with the newest model; a cohort's is over.
    stop_stale: bool = False
    #: An assignment that brings nothing within this time is a dropout. Default: three times the
    #: longest of the last 100 turns that were answered, between 10 s and 600 s; 600 s until 5 were.
    assignment_deadline_s: Positive | None = None
    #: A client rests between its turns for a time drawn uniformly from [low, high] seconds.
    pause_s: Range = (0.0, 0.0)
    #: The allow-list of resident clients: sites that train on their own data, without turns.
    #: Default: none. It travels with the model, so that a site can say why it is not let in.
    residents: Annotated[tuple[Resident, ...], Field(strict=False, max_length=500)] | None = None
    #: Who vouches that a message is from whom it says. broker: each site has a user of its client's
    #: name there, and what comes without a user, or from another, is rejected. none: nobody, for
    #: brokers on which all are the same user. Default: broker with residents, else none.
    identity: Literal["broker", "none"] | None = None


#: Patterns over the paths of weights, such as "head/*": ``*`` stands for any letters, ``/`` too.
_Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
    Field(strict=False, min_length=1, max_length=60),
]


class WeightsTable(Table):
    """Which of the model's weights travel, by patterns over their paths. Without it all of them."""

    #: Travel with every model and update. Default: what the other patterns leave.
    send: _Patterns | None = None
    #: Personal: stay with the client, in its state, from one turn to its next.
    keep: _Patterns | None = None
    #: Are not trained, and built by every worker from the task and the seed; a hash travels.
    #: Default: with send, what neither it nor keep names; else none.
    freeze: _Patterns | None = None


class EvaluationTable(Table):
    """How often a version is measured on held-out examples."""

    #: Evaluate when this many updates have been counted since the last time; 0 never.
    every_updates: int = Field(10, ge=0, le=2**53)
    #: Use only this many of the test examples. Default: all.
    examples: int | None = Field(None, ge=1, le=2**31)
    #: Also say how clients differ: accuracy and loss of the worst, at the worst tenth, mean and
    #: standard deviation. Default: no.
    by_client: bool | None = None


class CostTable(Table):
    """What a run costs. It does not travel, and changes nothing but the report."""

    #: One worker (an instance, a machine) for an hour.
    price_per_worker_hour: NonNegative
    #: What the price is in.
    currency: str = Field("USD", min_length=1, max_length=8)


class AdmissionTable(Table):
    """What no honest update exceeds: what does is rejected; see docs/security.md."""

    #: Examples that an update may claim to be trained on (``too_many_examples``).
    max_examples: int = Field(10_000_000, ge=1, le=2**40)
    #: The same, in medians of what the last 20 versions count; 0 turns it off.
    examples_factor: NonNegative = 1000.0
    #: How long an update may be (``too_long``), in medians of what the last 20 versions count, or
    #: a tenth of the model's own length if that is more; 0 turns it off.
    norm_factor: NonNegative = 100.0


class Experiment(Table):
    """A whole experiment file."""

    experiment: ExperimentTable = ExperimentTable()
    task: TaskTable = TaskTable()
    partition: PartitionTable = PartitionTable()
    training: TrainingTable = TrainingTable()
    participation: ParticipationTable = ParticipationTable()
    aggregation: Aggregation = Field(default_factory=dict, validate_default=True)
    evaluation: EvaluationTable = EvaluationTable()
    #: Which of the model's weights travel, which stay, and which are frozen.
    weights: WeightsTable | None = None
    devices: DevicesTable | None = None
    cost: CostTable | None = None
    #: What is done to an update before it leaves its client; see schemas/steps.py.
    update: Steps | None = None
    privacy: PrivacyTable | None = None
    secure_aggregation: SecureTable | None = None
    admission: AdmissionTable = AdmissionTable()

    @property
    def concurrency(self) -> int:
        """M: how many clients are in flight at once (a cohort's size in cohort mode)."""
        if self.participation.mode == "cohort":
            wanted = self.sampled * self.participation.over_selection
            return min(self.task.clients, math.ceil(wanted - 1e-9))
        return min(self.participation.concurrency or self.task.clients, self.task.clients)

    @property
    def keeps_weights(self) -> bool:
        """Whether clients have weights of their own."""
        return self.weights is not None and self.weights.keep is not None

    @property
    def residents(self) -> tuple[str, ...]:
        """The allow-list of resident clients."""
        return self.participation.residents or ()

    @property
    def everybody(self) -> int:
        """How many clients may take part, pooled and resident."""
        return self.task.clients + len(self.residents)

    @property
    def identity(self) -> Literal["broker", "none"]:
        """Who vouches for the sender of a message."""
        return self.participation.identity or ("broker" if self.residents else "none")

    @property
    def sampled(self) -> int:
        """How many clients a cohort has before over-selection."""
        return max(1, round(self.participation.sampling_rate * self.task.clients))

    @property
    def quorum(self) -> int:
        """K: how many updates close the buffer."""
        if self.aggregation.quorum is not None:
            return self.aggregation.quorum
        if self.aggregation.one_by_one:
            return 1
        if self.participation.mode == "cohort":
            return self.sampled
        return min(3, self.concurrency + len(self.residents))

    @property
    def samples_secretly(self) -> bool:
        """Whether a cohort is drawn by chance that nobody can compute (Poisson sampling)."""
        return self.privacy is not None and self.privacy.sampling is not None

    @property
    def min_updates(self) -> int:
        """How many updates a deadline needs to close the buffer."""
        if self.samples_secretly:
            return 0  # whoever was chosen and sends nothing counts as zero
        secure = self.secure_aggregation
        least = self.aggregation.least_updates(self.quorum)
        return max(self.aggregation.min_updates, least, secure.min_clients if secure else 0)

    @property
    def longest_turn_s(self) -> float:
        """Seconds after which a turn is a dropout in any case."""
        return self.participation.assignment_deadline_s or LONGEST_TURN_S

    @property
    def max_staleness(self) -> int | None:
        """Updates staler than this are rejected; None if none is too stale."""
        return self.aggregation.staleness_limit

    @property
    def stops_beyond(self) -> int | None:
        """A base more than so many versions old is not trained any longer; None: all are."""
        if not self.participation.stop_stale:
            return None
        return 0 if self.participation.mode == "cohort" else self.max_staleness

    @model_serializer(mode="wrap")
    def _what_counts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that do not count, so that what is written can be read again."""
        document: dict[str, Any] = dump(self)
        for name, table in self._tables():
            for key, _ in idle_keys(table):
                document.get(name, {}).pop(key, None)
        return document

    def _tables(self) -> Iterator[tuple[str, Table]]:
        for name in type(self).model_fields:
            if isinstance(table := getattr(self, name), Table):
                yield name, table

    @classmethod
    def stored(cls, text: str) -> Self:
        """An experiment that this version or one before has written down as JSON.

        Raises: ValidationError.
        """
        return cls.model_validate_json(text, context=STORED)

    @model_validator(mode="before")
    @classmethod
    def _decides_on_validation(cls, document: Any, info: ValidationInfo) -> Any:
        """The validation part that decisions ask for is written down with the experiment, so that
        a run which goes on keeps its clients' data, whatever stops it then.
        """
        if info.context == STORED or not isinstance(document, Mapping):
            return document
        stop, task = document.get("experiment", {}), document.get("task", {})
        if not isinstance(stop, Mapping) or not isinstance(task, Mapping):
            return document
        decides = stop.get("target_accuracy") is not None or stop.get("patience") is not None
        if not decides or task.get("validation") is not None or task.get("clients") == 0:
            return document
        return {**document, "task": {**task, "validation": VALIDATION}}

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context != STORED:
            for name, table in self._tables():
                refuse_idle_keys(name, table)
            PARTITION.check_name("partition.kind", self.partition.kind, PARTITIONS)
            check_names(self)
            for step in self.update or ():
                UPDATE_STEP.check_name("update.kind", step.kind, KINDS)
        cohort = self.participation.mode == "cohort"
        self._check_residents(cohort)
        most = self.concurrency + len(self.residents)
        if self.quorum > most:
            others = ", participation.residents" if self.residents else ""
            raise ValueError(
                f"aggregation.quorum = {self.quorum} can never be reached: at most {most} clients "
                "are in flight (task.clients, "
                f"participation.{'sampling_rate' if cohort else 'concurrency'}{others})"
            )
        if self.aggregation.min_updates > self.quorum:
            raise ValueError("aggregation.min_updates is larger than the quorum")
        strategy = self.aggregation.strategy
        least = self.aggregation.least_updates(self.quorum)
        if info.context != STORED and least > self.quorum:
            raise ValueError(
                f"{strategy} needs {least} updates {self.aggregation.needs(self.quorum)}, and the "
                f"quorum is {self.quorum}: set aggregation.quorum to {least} or more"
            )
        if self.aggregation.one_by_one and self.quorum != 1:
            raise ValueError(
                f"{strategy} makes a version of every update: remove aggregation.quorum, or make "
                "it 1"
            )
        self.aggregation.check(self)
        if self.aggregation.plateau_patience and not self.evaluation.every_updates:
            raise ValueError(
                "aggregation.plateau_patience counts evaluations, and evaluation.every_updates = 0"
            )
        if self.participation.stop_stale and self.stops_beyond is None:
            raise ValueError(
                "participation.stop_stale needs aggregation.max_staleness: without it no update is "
                "too old to count"
            )
        check_decisions(self)
        training = self.training
        check_algorithm(
            training.algorithm,
            training.algorithm_parameters,
            training.keep_state,
            strategy,
            self.task.name,
        )
        self._check_steps()
        if training.algorithm == "fedrep":
            check_fedrep(
                training.algorithm_parameters,
                training.epochs,
                self.keeps_weights,
                bool(self.devices and self.devices.effective("stragglers")),
                training.optimizer_parameters,
            )
        if info.context != STORED:
            refuse_unknown(training.algorithm)
        beyond = ("optimizer_parameters", "optimizer_state", "local_schedule", "version_schedule")
        for key in beyond if strategy in ("scaffold", "fednova") else ():
            if getattr(training, key) not in (None, "reset"):
                raise ValueError(
                    f"{strategy} knows what a constant learning rate makes of SGD's gradients: "
                    f"remove training.{key}"
                )
        if training.algorithm == "fedprox" and not training.proximal_mu:
            raise ValueError("training.algorithm = 'fedprox' needs training.proximal_mu")
        if training.algorithm not in (None, "fedprox") and training.proximal_mu:
            raise ValueError(
                f"training.proximal_mu is fedprox's, and not {training.algorithm}'s: leave it out"
            )
        if self.aggregation.deterministic and not (cohort and self.quorum == self.concurrency):
            raise ValueError(
                "aggregation.deterministic needs participation.mode = 'cohort' and a quorum of the "
                "whole cohort"
            )
        if self.aggregation.deterministic and self.aggregation.on_deadline != "extend":
            raise ValueError("aggregation.deterministic needs aggregation.on_deadline = 'extend'")
        if self.participation.pause_s[0] > self.participation.pause_s[1]:
            raise ValueError("participation.pause_s is [low, high]")
        if self.evaluation.by_client and not self.task.clients:
            raise ValueError(
                "evaluation.by_client is about pooled clients, and task.clients = 0: sites measure "
                "the model on what they hold out themselves"
            )
        if self.privacy is not None and not self.aggregation.private:
            able = [name for name, table in strategies().items() if table.private]
            raise ValueError(
                f"privacy goes with {', '.join(able)}, whose sums no update moves by more than "
                f"its length; not with {strategy}"
            )
        check_privacy(self, info.context == STORED)
        check_secure(self, [name for name, table in strategies().items() if table.linear])
        if self.training.nesterov and not self.training.momentum:
            raise ValueError("training.nesterov needs training.momentum")
        return self

    def _check_steps(self) -> None:
        if self.training.steps is None:
            return
        devices = self.devices or DevicesTable()
        others = {
            "training.epochs": self.training.epochs != 1,
            "training.engine = 'jax'": self.training.engine == "jax",
            "training.algorithm = 'fedrep'": self.training.algorithm == "fedrep",
            "devices.stragglers": devices.effective("stragglers"),
            "devices.seconds_per_example": devices.effective("seconds_per_example"),
            "devices.hardware": devices.hardware,
        }
        for key, counts_epochs in others.items():
            if counts_epochs:
                raise ValueError(f"{key} counts epochs, which training.steps replaces: choose one")

    def _check_personal(self) -> None:
        algorithm = self.training.algorithm or self.aggregation.strategy
        if algorithm in ("scaffold", "feddyn", "moon", "ditto"):
            raise ValueError(
                f"weights.keep does not go with {algorithm}, which has tensors for every weight: "
                "choose fedavg, fedbuff or another, or freeze in its place"
            )

    def _check_residents(self, cohort: bool) -> None:
        if self.task.validation and not self.task.clients:
            raise ValueError(
                "task.validation is a share of the pooled clients' examples, and task.clients = 0: "
                "give the task a validation(), which the evaluator decides on"
            )
        for name in self.residents:
            if name.isdecimal():
                raise ValueError(
                    f"participation.residents: {name!r} is a number, as pooled clients are: give "
                    "the site a name"
                )
        if len(set(self.residents)) < len(self.residents):
            raise ValueError("participation.residents names a client twice")
        if self.residents and remembers(self.update or ()):
            raise ValueError(
                "participation.residents cannot keep what compression left over: set "
                "error_feedback = false in [[update]]"
            )
        if not self.task.clients and not self.residents:
            raise ValueError(
                "task.clients = 0 leaves nobody to train: give the number of simulated clients, 1 "
                "or more; 0 is for runs whose clients are all sites, in participation.residents"
            )
        if self.keeps_weights:
            self._check_personal()
        if cohort and self.residents:
            raise ValueError(
                "participation.residents need participation.mode = 'concurrent': nobody can choose "
                "them for a cohort (for synchronous rounds of all of them set aggregation.quorum "
                "to their number, on_deadline = 'extend' and max_staleness = 0)"
            )


class Plan(Table):
    """How clients train a model: the part of the experiment that travels with it."""

    seed: int = Field(ge=0, lt=2**32)
    sends: Literal["delta", "weights"]
    task: TaskTable
    partition: PartitionTable
    training: TrainingTable
    evaluation: EvaluationTable
    pause_s: Range = (0.0, 0.0)
    devices: DevicesTable | None = None
    #: The allow-list of resident clients, a space between: a message's lists are short.
    residents: Annotated[str, Field(max_length=33_000)] | None = None
    #: A resident client has to be the broker's user of its own name.
    identity: Literal["broker"] | None = None
    #: What clients do besides.
    asks: Asks | None = None
    #: What is done to an update before it leaves.
    update: Steps | None = None
    #: Which weights travel.
    weights: WeightsTable | None = None
    #: A training is stopped where its base is more than so many versions older than the newest.
    stops_beyond: int | None = Field(None, ge=0, le=2**53)
    #: How updates are masked.
    secure: SecurePlan | None = None

    @property
    def keeps_state(self) -> bool:
        """Whether a client keeps something from one turn to its next."""
        algorithm = state_of(self.asks, self.training.algorithm, self.training.keep_state)
        personal = self.weights is not None and self.weights.keep is not None
        return (
            algorithm
            or personal
            or self.training.optimizer_state == "keep"
            or remembers(self.update or ())
        )

    @property
    def keeps_with_server(self) -> bool:
        """Whether what a client keeps has to go with what the aggregator counted of it."""
        return state_of(self.asks, None, None) or remembers(self.update or ())

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        sends: Literal["delta", "weights"],
        asks: Asks | None = None,
        helper_key: str | None = None,
    ) -> Plan:
        """The plan of an experiment whose strategy wants deltas or weights, and perhaps more.

        helper_key: that of the run's own helper, where it has one.
        """
        return cls(
            seed=experiment.experiment.seed,
            sends=sends,
            task=experiment.task,
            partition=experiment.partition,
            training=experiment.training,
            evaluation=experiment.evaluation,
            pause_s=experiment.participation.pause_s,
            devices=experiment.devices,
            residents=" ".join(experiment.residents) or None,
            identity="broker" if experiment.identity == "broker" else None,
            asks=asks,
            update=experiment.update,
            weights=experiment.weights,
            stops_beyond=experiment.stops_beyond,
            secure=secure_plan(experiment, helper_key),
        )

    def admits(self, client: str) -> bool:
        """Whether this resident client may take part."""
        return client in (self.residents or "").split()
