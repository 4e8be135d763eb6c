"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """What was found, and where it is lacking, how to get it."""

    name: str
    #: ok; lack: something that many want is not here; note: good to know, nothing is wrong.
    status: Literal["ok", "lack", "note"]
    found: str
    get: str = ""
    #: The same for programs.
    facts: dict[str, Any] = field(default_factory=dict)
