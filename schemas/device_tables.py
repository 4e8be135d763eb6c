"""Device tables as they travel: rows of numbers in a text, the rows apart by ``;``.

A message's lists are short, and a plan never names a file: who loads an experiment file reads its
CSV files (``fluffle.device_files``), and what is made of them is checked here on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

#: Numbers in one table.
MOST_NUMBERS = 400_000
_MOST_CHARACTERS = 24 * MOST_NUMBERS

#: client, start, end; seconds.
TRACE_COLUMNS = ("client", "start", "end")
#: Each column of a device, and what it is where a table does not have it.
HARDWARE_COLUMNS = {
    "seconds_per_example": 0.0,
    "latency_s": 0.0,
    "download_bytes_per_s": math.inf,
    "upload_bytes_per_s": math.inf,
}

Row = tuple[float, ...]


def rows_of(text: str) -> list[Row]:
    """The rows of a table. Raises: ValueError where it is none."""
    try:
        return [tuple(map(float, row.split())) for row in text.split(";")]
    except ValueError:
        raise ValueError("it is no table of numbers") from None


def text_of(rows: Sequence[Row]) -> str:
    """The same as a text; ``rows_of`` gives the same numbers back."""
    return ";".join(" ".join(f"{value!r}".removesuffix(".0") for value in row) for row in rows)


def is_span(row: Row) -> bool:
    """Whether this is a row of a trace: a client's number, and from when to when it is there."""
    if len(row) != 3 or not all(map(math.isfinite, row)):
        return False
    client, start, end = row
    return client >= 0 and client.is_integer() and 0 <= start < end


def is_device(row: Row) -> bool:
    """Whether this is a row of hardware: seconds, which end, and bytes in a second."""
    if len(row) != len(HARDWARE_COLUMNS):
        return False
    times, rates = row[:2], row[2:]
    return all(0 <= value < math.inf for value in times) and all(value > 0 for value in rates)


def _checked(name: str, fits: Callable[[Row], bool]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            rows = rows_of(text)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}; the path of a CSV goes into an experiment file"
            ) from None
        if sum(map(len, rows)) > MOST_NUMBERS:
            raise ValueError(f"{name}: more than {MOST_NUMBERS:,} numbers")
        for number, row in enumerate(rows, 1):
            if not fits(row):
                raise ValueError(f"{name}: row {number} does not fit")
        return text

    return check


#: In an experiment file the path of a CSV; as it travels, client start end for each row.
Trace = Annotated[
    str, Field(max_length=_MOST_CHARACTERS), AfterValidator(_checked("devices.trace", is_span))
]
#: In an experiment file the path of a CSV; as it travels, ``HARDWARE_COLUMNS`` for each row.
HardwareTable = Annotated[
    str, Field(max_length=_MOST_CHARACTERS), AfterValidator(_checked("devices.hardware", is_device))
]
