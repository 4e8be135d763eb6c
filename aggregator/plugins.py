"""Plug-ins of the aggregator: classes of ours by name, of installed packages, of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from fluffle.schemas import UserError
from fluffle.schemas.extensions import ExtensionPoint

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """All plug-ins of one kind."""

    point: ExtensionPoint
    #: What every one of them is.
    base: type[T]
    #: Those that come with Fluffle.
    ours: Mapping[str, Callable[..., T]]
    #: Where keyword arguments stand in the experiment file.
    key: str

    def make(self, name: str, parameters: Mapping[str, Any] | None, code: Path | None) -> T:
        """The one of this name; ``code`` is the folder of files, by default the present one.

        Raises: UserError.
        """
        if name in self.ours:
            return self.ours[name](**(parameters or {}))
        made = self.point.make(name, parameters, code or Path())
        if not isinstance(made, self.base):
            raise UserError(
                f"{name} is no fluffle.{self.base.__name__}: see docs/extending.md for how to make "
                f"{self.point.noun} of your own"
            )
        return made

    def checked(self, name: str, parameters: Mapping[str, Any] | None) -> T | None:
        """One of ours; None for all others. Raises: ValueError where it cannot be made."""
        if name not in self.ours:
            return None
        try:
            return self.make(name, parameters, None)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([self.key, *map(str, first["loc"])])
            raise ValueError(f"{where}: {first['msg']} (of {name})") from None
        except (TypeError, ValueError) as error:
            made = getattr(self.ours[name], "__name__", name)
            said = str(error).replace(f"{made}.__init__()", name).replace(f"{made}()", name)
            raise ValueError(f"{self.key}: {said}") from None
