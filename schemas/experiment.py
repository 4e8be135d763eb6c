"""The experiment file: every key, its default and its bounds. One TOML table per class."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fluffle.schemas.algorithms import Asks, Scalar, check_algorithm, state_of
from fluffle.schemas.device_tables import HardwareTable, Trace
from fluffle.schemas.steps import Steps, remembers
from fluffle.schemas.user_code import is_custom

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
#: [low, high]. A TOML or msgpack list is as good as a tuple.
Range = Annotated[tuple[NonNegative, NonNegative], Field(strict=False)]
#: A resident client, which is also its user's name on the broker. No dots: the rights on
#: ``site.…`` that one has must not fit the queues of another.
Resident = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Table(BaseModel):
    """One table of the experiment file. Unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExperimentTable(Table):
    """When to stop, and the seed of everything random."""

    #: The run folder, its curves and its logs go by this name: letters, digits, dots, _ and -, at
    #: most 64.
    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    #: Of everything random: who trains when, on what, from which weights.
    seed: int = Field(42, ge=0, lt=2**32)
    #: Stop after this many versions.
    versions: int = Field(100, ge=1, le=2**53)
    #: Stop when an evaluation reaches this accuracy.
    target_accuracy: Fraction | None = None
    #: Stop when this many evaluations in a row are no better than the best before them, by
    #: accuracy, or by loss where the task has no accuracy.
    patience: int | None = Field(None, ge=1)
    #: Better is what is ahead of the best by more than this.
    min_delta: NonNegative = 0.0
    #: Stop after this time.
    max_minutes: Positive | None = None


class TaskTable(Table):
    """What is learned, and by how many clients."""

    #: One that comes with Fluffle, or "FILE.py:Class": a file beside the experiment file.
    name: str = "mnist-mlp"
    #: Pooled clients, "0", "1", …, whom any worker trains. 0: resident clients alone.
    clients: int = Field(10, ge=0, le=1_000_000)
    #: synthetic-lr: how much the devices' models differ (alpha); Li et al. 2020, arXiv 1812.06127,
    #: section 5.1. Default: 1.
    synthetic_alpha: NonNegative | None = None
    #: synthetic-lr: how much the devices' inputs differ (beta). Default: 1.
    synthetic_beta: NonNegative | None = None
    #: synthetic-lr: all devices have the same model and inputs instead (the paper's IID data).
    synthetic_iid: bool | None = None


class PartitionTable(Table):
    """Which examples each client holds."""

    #: contiguous stretches in the order of the data; iid, at random; shards of a label; dirichlet,
    #: power-law and similarity, skewed on purpose; natural, by the data's own owners.
    kind: Literal[
        "contiguous", "iid", "shards", "dirichlet", "power-law", "similarity", "natural"
    ] = "contiguous"
    #: shards: how many label-sorted shards a client gets (McMahan et al. 2017: 2).
    shards_per_client: int = Field(2, ge=1, le=2**31)
    #: dirichlet: the sum of the concentrations of all classes; smaller is more skewed (Hsu et al.
    #: 2019, arXiv 1909.06335).
    alpha: Positive = 0.5
    #: power-law: client k's share of the examples is proportional to (k + 1)^-exponent. Default: 1.
    exponent: NonNegative | None = None
    #: similarity: this many percent of each client's examples are iid, the rest is sorted by label
    #: (Karimireddy et al. 2020, arXiv 1910.06378). Default: 10.
    similarity: Annotated[float, Field(ge=0, le=100)] | None = None
    #: Keep at most this many examples of each client.
    examples_per_client: int | None = Field(None, ge=1, le=2**31)


class TrainingTable(Table):
    """Local training of one client."""

    #: How often a client goes over its examples in one turn.
    epochs: int = Field(1, ge=1, le=2**31)
    #: Examples in a step of the optimizer; the last batch of an epoch may be shorter.
    batch_size: int = Field(32, ge=1, le=2**31)
    #: sgd, adam (compiled into the training loop) or the name of any other Keras optimizer.
    optimizer: str = "adam"
    #: Of the clients' optimizer.
    learning_rate: Positive = 0.001
    #: sgd only.
    momentum: float = Field(0.0, ge=0, lt=1)
    #: sgd only: Nesterov's momentum.
    nesterov: bool = False
    #: FedProx (arXiv 1812.06127): mu/2 |w - w_base|^2 is added to the local loss.
    proximal_mu: NonNegative | None = None
    #: What a client does besides: fedprox, or FILE.py:Class beside the experiment file. Default:
    #: what the strategy asks for, else plain local training.
    algorithm: str | None = None
    #: What an algorithm is made with.
    algorithm_parameters: dict[str, Scalar] | None = None
    #: An algorithm from a file: clients keep what it returns for their next turn.
    keep_state: bool | None = None


class DevicesTable(Table):
    """What clients' devices are like: four independent axes, each optional, all seeded."""

    #: Settings under a name, which the keys below override: article (exponential delays of 2 s on
    #: average, one turn in ten lost), phones (slow, diurnal, unreliable).
    preset: Literal["article", "phones"] | None = None

    #: availability: when a client can start. diurnal: a sine over ``period_s``, its phase the
    #: client's own; on_off: exponential times on and off; trace: rows client,start,end of a CSV.
    availability: Literal["always", "diurnal", "on_off", "trace"] | None = None
    #: diurnal: the length of a day. Default: 86400.
    period_s: Positive | None = None
    #: diurnal: the share of clients that are available on average. Default: 0.5.
    available: Fraction | None = None
    #: on_off: how long a client is there, on average. Default: 600.
    on_s: Positive | None = None
    #: on_off: how long it is away, on average. Default: 600.
    off_s: Positive | None = None
    #: trace: the path of the CSV, from the experiment file on.
    trace: Trace | None = None

    #: connectivity: the probability that a turn brings nothing.
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    #: Where a turn that brings nothing is lost; any: in one of the three, at random. Default: any.
    dropout_at: Literal["before_training", "after_training", "upload", "any"] | None = None

    #: completeness: the share of turns that do only 1 to ``epochs`` epochs, uniformly (FedProx).
    stragglers: Annotated[float, Field(ge=0, le=1)] | None = None

    #: responsiveness: a delay in seconds with this distribution and mean, for each client once
    #: or for each turn anew. half_normal and log_normal are those of FedBuff's and FLSim's kind.
    delay: (
        Literal["constant", "uniform", "exponential", "half_normal", "log_normal", "pareto"] | None
    ) = None
    #: The mean of the delay, in seconds.
    delay_s: NonNegative | None = None
    #: log_normal: sigma; pareto: the exponent (above 1).
    delay_shape: Positive | None = None
    #: Whether a delay is drawn once for each client or anew for each turn. Default: turn.
    delay_of: Literal["client", "turn"] | None = None
    #: responsiveness by hardware: what a device takes for one example, and its network.
    seconds_per_example: NonNegative | None = None
    #: What a message takes besides its bytes, each way.
    latency_s: NonNegative | None = None
    #: The network of a device towards it: how fast a model comes.
    download_bytes_per_s: Positive | None = None
    #: And away from it: how fast an update goes.
    upload_bytes_per_s: Positive | None = None
    #: Hostile clients, for experiments on robust strategies: this share trains, and sends its delta
    #: with the sign flipped, times byzantine_scale (default 1).
    byzantine: Annotated[float, Field(ge=0, le=1)] | None = None
    #: What a hostile client's flipped delta is multiplied by. Default: 1.
    byzantine_scale: Positive | None = None
    #: The path of a CSV with a row for each device: seconds_per_example, latency_s,
    #: download_bytes_per_s, upload_bytes_per_s; clients are dealt the rows at random.
    hardware: HardwareTable | None = None

    @model_validator(mode="after")
    def _has_its_trace(self) -> Self:
        if self.availability == "trace" and self.trace is None:
            raise ValueError(
                "devices.availability = 'trace' needs devices.trace, the path of a CSV"
            )
        return self


class ParticipationTable(Table):
    """Who trains when."""

    #: concurrent: so many clients are always in flight (asynchronous). cohort: clients are chosen
    #: together for each version (synchronous rounds).
    mode: Literal["concurrent", "cohort"] = "concurrent"
    #: concurrent: how many clients are in flight at once (M). Default: all.
    concurrency: int | None = Field(None, ge=1)
    #: cohort: the share of clients chosen for each version.
    sampling_rate: Fraction = 1.0
    #: cohort: choose this many times more clients than the quorum needs.
    over_selection: float = Field(1.0, ge=1, allow_inf_nan=False)
    #: An assignment that brings nothing within this time is a dropout.
    assignment_deadline_s: Positive = 600.0
    #: A client rests between its turns for a time drawn uniformly from [low, high] seconds.
    pause_s: Range = (0.0, 0.0)
    #: The allow-list of resident clients: sites that train on their own data, without turns.
    #: Default: none. It travels with the model, so that a site can say why it is not let in.
    residents: Annotated[tuple[Resident, ...], Field(strict=False, max_length=500)] | None = None
    #: Who vouches that a message is from whom it says. broker: each site has a user of its client's
    #: name there, and what comes without a user, or from another, is rejected. none: nobody, for
    #: brokers on which all are the same user. Default: broker with residents, else none.
    identity: Literal["broker", "none"] | None = None


#: Every strategy by its name; docs/strategies.md has their equations.
STRATEGIES = (
    *("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"),
    *("fedbuff", "fedasync", "ringmaster", "ca2fl"),
    *("median", "trimmed-mean", "krum", "multi-krum", "norm-bounding"),
    *("scaffold", "fednova"),
)
#: They hand what they aggregate to a server optimizer of one's choice.
WITH_OPTIMIZER = (
    *("fedbuff", "ca2fl", "median", "trimmed-mean", "krum", "multi-krum", "norm-bounding"),
)
#: They make a version of every update.
ONE_BY_ONE = ("fedasync", "ringmaster")
#: Strategies that weigh updates by examples unless told otherwise.
BY_EXAMPLES = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
#: Strategies whose sums no update moves by more than its length.
PRIVATE = ("fedbuff", "ringmaster", *BY_EXAMPLES)


def _known_strategy(name: str) -> str:
    if name in STRATEGIES or is_custom(name):
        return name
    raise ValueError(
        f"aggregation.strategy = {name!r} is none of {', '.join(STRATEGIES)}, and no file of your "
        "own, as my_file.py:MyStrategy"
    )


class AggregationTable(Table):
    """When a buffer closes, and what is made of it."""

    #: A name of docs/strategies.md, or FILE.py:Class beside the experiment file.
    strategy: Annotated[str, AfterValidator(_known_strategy)] = "fedbuff"
    #: What a strategy from a file is made with.
    parameters: dict[str, bool | int | float | str | list[bool | int | float | str]] | None = None
    #: How many updates close the buffer (K). Default: fedasync and ringmaster 1, cohort its size,
    #: else 3.
    quorum: int | None = Field(None, ge=1)
    #: The time after which the buffer closes without a quorum.
    deadline_s: Positive = 10.0
    #: At the deadline without a quorum: step (with min_updates, else extend), extend or abort.
    on_deadline: Literal["step", "extend", "abort"] = "step"
    #: A deadline steps with at least this many updates in the buffer.
    min_updates: int = Field(1, ge=1)
    #: Updates staler than this are rejected. Default: none is too stale.
    max_staleness: int | None = Field(None, ge=0)
    #: The weight of a stale update: constant 1; polynomial (1+tau)^-a; hinge 1/(a(tau-b)+1) past b.
    #: Default: polynomial for fedbuff and fedasync, constant for the others.
    staleness: Literal["constant", "polynomial", "hinge"] | None = None
    #: a of polynomial and hinge.
    staleness_a: NonNegative = 0.5
    #: b of hinge: how many versions old an update may be at full weight.
    staleness_b: NonNegative = 4.0
    #: fedavg, fedavgm, fedadagrad, fedadam, fedyogi: weigh updates by examples, or all the same.
    weighting: Literal["examples", "uniform"] = "examples"
    #: What the server makes of the mean delta. Default: the one in the strategy's name, else sgd.
    server_optimizer: Literal["sgd", "momentum", "adagrad", "adam", "yogi"] | None = None
    #: The server's learning rate (eta). Default: sgd, momentum 1; adagrad 0.1; adam, yogi 0.01.
    server_learning_rate: Positive | None = None
    #: momentum: beta; adagrad, adam, yogi: beta_1. Default: 0.9, adagrad 0.
    server_beta_1: Annotated[float, Field(ge=0, lt=1)] | None = None
    #: adam, yogi: beta_2. Default: 0.99.
    server_beta_2: Annotated[float, Field(ge=0, lt=1)] | None = None
    #: adagrad, adam, yogi: the degree of adaptivity (tau). Default: 0.001.
    server_tau: Positive | None = None
    #: fedasync: the mixing weight (alpha).
    mixing: Fraction = 0.6
    #: ringmaster: updates this stale or staler are ignored (R).
    delay_threshold: int | None = Field(None, ge=1)
    #: ca2fl: refuse to start where all clients' last deltas would take more. Default: 1000.
    max_cache_mb: Positive | None = None
    #: trimmed-mean: the share of updates left out at each end, in every coordinate. Default: 0.2.
    trim: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    #: krum, multi-krum: how many updates of a buffer may be bad (f). Default: at most, (K - 3) / 2.
    byzantine_updates: int | None = Field(None, ge=0)
    #: multi-krum: how many updates are averaged (m). Default: the buffer's less f.
    krum_selected: int | None = Field(None, ge=1)
    #: norm-bounding: deltas longer than this are shortened to it (M).
    norm_bound: Positive | None = None
    #: scaffold: clients renew their control variate by option I (the gradient at the global model:
    #: one more pass over their data) or II (the path that they went, for nothing). Default: II.
    control_option: Literal["I", "II"] | None = None
    #: cohort: fold in client order, so that every version has the same bytes on any transport.
    deterministic: bool = False
    #: A partial checkpoint is taken when updates have been held for this long.
    hold_s: Positive = 60.0
    #: Weight files of this many last versions stay in the run folder.
    keep_versions: int = Field(3, ge=1)
    #: Archive every update that is folded, so that ``fluffle verify --replay`` can recompute every
    #: version: takes the model's bytes for each update.
    keep_updates: bool = False


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


class PrivacyTable(Table):
    """Central differential privacy for clients; see docs/privacy.md."""

    #: Deltas longer than this (L2, over all trainable weights) are shortened to it (C).
    clip_norm: Positive
    #: The standard deviation of the noise on the sum of a buffer, in units of ``clip_norm`` (z).
    noise_multiplier: Positive
    #: The delta for which epsilon is reported: well below one in the number of clients.
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


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
    aggregation: AggregationTable = AggregationTable()
    evaluation: EvaluationTable = EvaluationTable()
    devices: DevicesTable | None = None
    cost: CostTable | None = None
    #: What is done to an update before it leaves its client; see schemas/steps.py.
    update: Steps | None = None
    privacy: PrivacyTable | None = None
    admission: AdmissionTable = AdmissionTable()

    @property
    def concurrency(self) -> int:
        """M: how many clients are in flight at once (a cohort's size in cohort mode)."""
        if self.participation.mode == "cohort":
            wanted = self.sampled * self.participation.over_selection
            return min(self.task.clients, math.ceil(wanted - 1e-9))
        return min(self.participation.concurrency or self.task.clients, self.task.clients)

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
        if self.aggregation.strategy in ONE_BY_ONE:
            return 1
        if self.participation.mode == "cohort":
            return self.sampled
        return min(3, self.concurrency + len(self.residents))

    @property
    def byzantine_updates(self) -> int:
        """f: how many updates of a buffer Krum takes for bad."""
        f = self.aggregation.byzantine_updates
        return max(0, (self.quorum - 3) // 2) if f is None else f

    @property
    def min_updates(self) -> int:
        """How many updates a deadline needs to close the buffer; Krum needs 2 f + 3."""
        krum = self.aggregation.strategy in ("krum", "multi-krum")
        return max(self.aggregation.min_updates, 2 * self.byzantine_updates + 3 if krum else 1)

    @property
    def max_staleness(self) -> int | None:
        """Updates staler than this are rejected; None if none is too stale."""
        limits = [self.aggregation.max_staleness]
        if self.aggregation.strategy == "ringmaster" and self.aggregation.delay_threshold:
            limits.append(self.aggregation.delay_threshold - 1)
        return min((limit for limit in limits if limit is not None), default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
        if self.min_updates > self.quorum:
            raise ValueError(
                f"{self.aggregation.strategy} with aggregation.byzantine_updates = "
                f"{self.byzantine_updates} needs a quorum of at least {self.min_updates} (2 f + 3)"
            )
        strategy = self.aggregation.strategy
        if strategy in ONE_BY_ONE and self.quorum != 1:
            raise ValueError(
                f"{strategy} makes a version of every update: remove aggregation.quorum, or make "
                "it 1"
            )
        if strategy == "ringmaster" and self.aggregation.delay_threshold is None:
            raise ValueError("ringmaster needs aggregation.delay_threshold (R)")
        if strategy == "norm-bounding" and self.aggregation.norm_bound is None:
            raise ValueError("norm-bounding needs aggregation.norm_bound (M)")
        if self.aggregation.parameters is not None and not is_custom(strategy):
            raise ValueError(
                f"[aggregation.parameters] are for a strategy from a file, and {strategy} is none"
            )
        if self.aggregation.server_optimizer and strategy not in WITH_OPTIMIZER:
            raise ValueError(
                f"aggregation.server_optimizer goes with {', '.join(WITH_OPTIMIZER)}, and not with "
                f"{strategy}"
            )
        training = self.training
        check_algorithm(
            training.algorithm, training.algorithm_parameters, training.keep_state, strategy
        )
        if training.algorithm == "fedprox" and not training.proximal_mu:
            raise ValueError("training.algorithm = 'fedprox' needs training.proximal_mu")
        if training.algorithm not in (None, "fedprox") and training.proximal_mu:
            raise ValueError(
                f"training.proximal_mu is fedprox's, and not {training.algorithm}'s: leave it out"
            )
        plain = training.optimizer.lower() == "sgd"
        if strategy == "scaffold" and (not plain or training.momentum or training.proximal_mu):
            raise ValueError(
                "scaffold corrects plain SGD: training.optimizer = 'sgd', without momentum and "
                "proximal_mu"
            )
        if strategy == "fednova" and not plain:
            raise ValueError(
                "fednova knows what SGD makes of its gradients (momentum, nesterov and "
                "proximal_mu included), and no other optimizer: training.optimizer = 'sgd'"
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
        if self.privacy is not None:
            self._check_privacy()
        if self.training.nesterov and not self.training.momentum:
            raise ValueError("training.nesterov needs training.momentum")
        return self

    def _check_privacy(self) -> None:
        strategy = self.aggregation.strategy
        if strategy not in PRIVATE:
            raise ValueError(
                f"privacy goes with {', '.join(PRIVATE)}, whose sums no update moves by more than "
                f"its length; not with {strategy}"
            )
        if strategy in BY_EXAMPLES and self.aggregation.weighting != "uniform":
            raise ValueError("privacy needs aggregation.weighting = 'uniform'")

    def _check_residents(self, cohort: bool) -> None:
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
            raise ValueError("task.clients = 0 leaves nobody: name participation.residents")
        if self.residents and self.training.keep_state:
            raise ValueError(
                "training.keep_state: clients keep state from turn to turn, and "
                "participation.residents have no turns"
            )
        if self.residents and self.aggregation.strategy == "scaffold":
            raise ValueError(
                "scaffold's clients keep state from turn to turn, and participation.residents have "
                "no turns: choose another strategy"
            )
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

    @property
    def keeps_state(self) -> bool:
        """Whether a client keeps something from one turn to its next."""
        algorithm = state_of(self.asks, self.training.algorithm, self.training.keep_state)
        return algorithm or remembers(self.update or ())

    @classmethod
    def of(
        cls, experiment: Experiment, sends: Literal["delta", "weights"], asks: Asks | None = None
    ) -> Plan:
        """The plan of an experiment whose strategy wants deltas or weights, and perhaps more."""
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
        )

    def admits(self, client: str) -> bool:
        """Whether this resident client may take part."""
        return client in (self.residents or "").split()
