"""``[aggregation]``: the keys of every strategy. A strategy's own are declared in its file.

The class that a table becomes is chosen by its ``strategy``. Strategies live in the aggregator,
which this room may not import: they are looked up by name, like a plug-in, when the first
experiment is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo

from fluffle.schemas.table import Fraction, OnlyWith, Parameters, Positive, Table

if TYPE_CHECKING:
    from fluffle.schemas.experiment import Experiment

#: The context in which an experiment is read that some version of Fluffle has written down.
STORED = "stored"
_REGISTRY = "fluffle.aggregator.strategies.registry"


class AggregationTable(Table):
    """When a buffer closes, and what is made of it."""

    #: Whether every update makes a version.
    one_by_one: ClassVar[bool] = False
    #: Whether ``[privacy]`` may come on top: no update moves a sum by more than its length.
    private: ClassVar[bool] = False
    #: Whether ``[secure_aggregation]`` goes with it: all that it needs is a weighted sum.
    linear: ClassVar[bool] = False
    #: Keys that may be others when a run is resumed: they change nothing of what is learned.
    may_change: ClassVar[tuple[str, ...]] = ()

    #: A name of docs/strategies.md, of an installed plug-in, or FILE.py:Class beside the experiment
    #: file.
    strategy: str = "fedbuff"
    #: How many updates close the buffer (K). Default: fedasync and ringmaster 1, cohort its size,
    #: else 3.
    quorum: int | None = Field(None, ge=1)
    #: What closes the buffer: updates, K of them; clients, updates of K different ones; examples,
    #: updates that were trained on so many together; or FILE.py:Class beside the experiment file.
    #: See docs/strategies.md.
    trigger: str = Field("updates", max_length=256)
    #: What a trigger is made with: its keyword arguments (examples: examples).
    trigger_parameters: Parameters | None = None
    #: The time after which the buffer closes without a quorum.
    deadline_s: Positive = 10.0
    #: At the deadline without a quorum: step (with min_updates, else extend), extend or abort.
    on_deadline: Literal["step", "extend", "abort"] = "step"
    #: A deadline steps with at least this many updates in the buffer.
    min_updates: int = Field(1, ge=1)
    #: Updates staler than this are rejected. Default: none is too stale.
    max_staleness: int | None = Field(None, ge=0)
    #: cohort: fold in client order, so that every version has the same bytes on any transport.
    deterministic: bool = False
    #: A partial checkpoint is taken when updates have been held for this long.
    hold_s: Positive = 60.0
    #: Make the server's steps shorter when this many evaluations in a row are no better than the
    #: best before them, by accuracy, or by loss where the task has no accuracy. Default: never.
    plateau_patience: int | None = Field(None, ge=1)
    #: What the steps' length is multiplied by then.
    plateau_factor: Annotated[Fraction, OnlyWith("plateau_patience")] = 0.5
    #: Weight files of this many last versions stay in the run folder.
    keep_versions: int = Field(3, ge=1)
    #: Archive every update that is folded, so that ``fluffle verify --replay`` can recompute every
    #: version: takes the model's bytes for each update.
    keep_updates: bool = False

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where the strategy does not go with the rest of the experiment."""

    def least_updates(self, quorum: int) -> int:
        """How many updates the strategy needs to make a version."""
        return 1

    def needs(self, quorum: int) -> str:
        """What it needs so many for, to be read after "needs so many updates"."""
        return "to make a version"

    @property
    def staleness_limit(self) -> int | None:
        """Updates staler than this are rejected; None if none is too stale."""
        return self.max_staleness


def strategies() -> Mapping[str, type[AggregationTable]]:
    """The parameters of every strategy that has a name, by that name."""
    found: Mapping[str, type[AggregationTable]] = import_module(_REGISTRY).strategies()
    return found


def keys_of(strategy: str) -> type[AggregationTable]:
    """What a strategy's table may have. Raises: ValueError for a name that nobody knows."""
    found: type[AggregationTable] = import_module(_REGISTRY).parameters_of(strategy)
    return found


def own_keys(table: type[AggregationTable]) -> list[str]:
    """The keys that not every strategy takes."""
    return [name for name in table.model_fields if name not in AggregationTable.model_fields]


def of_strategy(value: Any, info: ValidationInfo) -> Any:
    """The table of an experiment file as the class that its strategy declares.

    Raises: ValueError for a strategy that nobody knows, and for another strategy's key.
    """
    if not isinstance(value, Mapping):
        return value
    name = value.get("strategy", "fedbuff")
    if not isinstance(name, str):
        return value
    table = keys_of(name)
    if info.context == STORED:
        # Versions before this one wrote every key of every strategy, and None where there was none.
        known = {key for other in strategies().values() for key in other.model_fields}
        others = known.union(["parameters"]) - table.model_fields.keys()
        value = {k: v for k, v in value.items() if k not in others and v is not None}
    for key in value:
        owners = [o for o, other in strategies().items() if key in other.model_fields]
        if key not in table.model_fields and (owners or key == "parameters"):
            whose = ", ".join(owners) or "a strategy from a file"
            takes = ", ".join(own_keys(table)) or "nothing of its own"
            raise ValueError(
                f"aggregation.{key} does not go with {name}, which takes {takes} (and what every "
                f"strategy takes); it goes with {whose}"
            )
    return table.model_validate(value)


Aggregation = Annotated[SerializeAsAny[AggregationTable], BeforeValidator(of_strategy)]
