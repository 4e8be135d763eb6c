"""Sizes in bytes for a person: MB is 10^6 bytes in every text; limits set in MiB say MiB."""

from __future__ import annotations

MB, GB = 10**6, 10**9
#: What RabbitMQ's limits and our buffers are set in.
MIB = 2**20

_UNITS = ((1e18, "EB"), (1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
#: Three digits of 999,600 bytes are those of a megabyte.
_ROUNDED_UP = 0.9995


def bytes_unit(most: float) -> tuple[float, str]:
    """What to divide bytes by, and what they are then called."""
    return next(((by, name) for by, name in _UNITS if most >= by * _ROUNDED_UP), (1.0, "bytes"))


def human_bytes(size: float) -> str:
    """Three digits and a decimal unit: ``44.7 MB``."""
    by, name = bytes_unit(size)
    return f"{size / by:.3g} {name}"
