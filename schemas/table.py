"""The base of every table of an experiment file, and what says which keys go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
#: [low, high]. A TOML or msgpack list is as good as a tuple.
Range = Annotated[tuple[NonNegative, NonNegative], Field(strict=False)]


class Arguments(dict[str, Any]):
    """Keyword arguments that nobody changes: tables that hold them can be keys of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


#: What a class of one's own is made with: its keyword arguments.
Parameters = Annotated[
    dict[str, bool | int | float | str | list[bool | int | float | str]], AfterValidator(Arguments)
]


class Table(BaseModel):
    """One table of the experiment file. Unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def effective(self, key: str) -> Any:
        """The value that holds for a key."""
        return getattr(self, key)


@dataclass(frozen=True)
class OnlyWith:
    """Marks a key that only counts where another key of its table has one of these values.

    Without values: where the other key is given at all.
    """

    key: str
    values: tuple[str, ...] = ()

    def holds(self, table: Table) -> bool:
        """Whether the key counts in this table."""
        found = table.effective(self.key)
        return str(found).lower() in self.values if self.values else found is not None

    def refusal(self, where: str, table: Table) -> str:
        """Why the key ``where`` (TABLE.KEY) cannot stand in this table."""
        other = f"{where.partition('.')[0]}.{self.key}"
        if not self.values:
            return f"{where} says nothing without {other}: give that as well, or neither"
        wanted = " or ".join(map(repr, self.values))
        found = table.effective(self.key)
        given = "which is not given" if found is None else f"and not with {found!r}"
        return f"{where} goes with {other} = {wanted}, {given}"


@dataclass(frozen=True)
class NotWith:
    """Marks a key in whose place another one counts."""

    key: str

    def holds(self, table: Table) -> bool:
        """Whether the key counts in this table."""
        return table.effective(self.key) is None

    def refusal(self, where: str, table: Table) -> str:
        """Why the key ``where`` (TABLE.KEY) cannot stand in this table."""
        return f"{where} says nothing beside {where.partition('.')[0]}.{self.key}: give one of them"


def idle_keys(table: Table) -> Iterator[tuple[str, OnlyWith | NotWith]]:
    """The keys that do not count in this table, each with the condition that does not hold."""
    for name, field in type(table).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, OnlyWith | NotWith) and not mark.holds(table):
                yield name, mark


def refuse_idle_keys(where: str, table: Table) -> None:
    """Raises: ValueError for a key that was given and does not count; ``where`` is the table's."""
    for name, mark in idle_keys(table):
        if name in table.model_fields_set and getattr(table, name) is not None:
            raise ValueError(mark.refusal(f"{where}.{name}", table))
